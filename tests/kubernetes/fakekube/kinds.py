"""The kinds of objects that the fake server knows, by the names that their paths use."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .failures import ApiError


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API.

    Attributes:
        group: API group; empty for the core group.
        version: version within the group.
        plural: name in paths and in discovery.
        name: the `kind` of its objects.
        short_names: abbreviations that kubectl accepts.
        namespaced: whether its objects live in namespaces.
        custom: defined by a CRD, so that it knows no strategic merge patch.
    """

    group: str
    version: str
    plural: str
    name: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    custom: bool = False

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """Name in error messages: `pods`, `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_RBAC = "rbac.authorization.k8s.io"
_AIBRIX = ("model.aibrix.ai", "v1alpha1")
_GATEWAY = ("gateway.networking.k8s.io", "v1")
_ENVOY = ("gateway.envoyproxy.io", "v1alpha1")

KINDS = (
    Kind("", "v1", "pods", "Pod", ("po",)),
    Kind("", "v1", "services", "Service", ("svc",)),
    Kind("", "v1", "configmaps", "ConfigMap", ("cm",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", ("sa",)),
    Kind("", "v1", "namespaces", "Namespace", ("ns",), namespaced=False),
    Kind("", "v1", "nodes", "Node", ("no",), namespaced=False),
    Kind("apps", "v1", "deployments", "Deployment", ("deploy",)),
    Kind("apps", "v1", "replicasets", "ReplicaSet", ("rs",)),
    Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", ("hpa",)),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", ("pdb",)),
    Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", ("netpol",)),
    Kind(_RBAC, "v1", "roles", "Role"),
    Kind(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Kind(*_AIBRIX, "modeladapters", "ModelAdapter", custom=True),
    Kind(*_GATEWAY, "httproutes", "HTTPRoute", custom=True),
    Kind(*_GATEWAY, "gateways", "Gateway", ("gtw",), custom=True),
    Kind(*_GATEWAY, "gatewayclasses", "GatewayClass", ("gc",), namespaced=False, custom=True),
    Kind(*_GATEWAY, "backendtlspolicies", "BackendTLSPolicy", ("btlspolicy",), custom=True),
    Kind(*_ENVOY, "backends", "Backend", ("be",), custom=True),
    Kind(*_ENVOY, "backendtrafficpolicies", "BackendTrafficPolicy", ("btp",), custom=True),
    Kind(*_ENVOY, "clienttrafficpolicies", "ClientTrafficPolicy", ("ctp",), custom=True),
    Kind(*_ENVOY, "envoyextensionpolicies", "EnvoyExtensionPolicy", ("eep",), custom=True),
    Kind(*_ENVOY, "envoypatchpolicies", "EnvoyPatchPolicy", ("epp",), custom=True),
    Kind(*_ENVOY, "securitypolicies", "SecurityPolicy", ("sp",), custom=True),
    Kind(*_ENVOY, "envoyproxies", "EnvoyProxy", ("eproxy",), custom=True),
)
"""Built-in kinds and the custom resources of a cluster that serves models."""


class Kinds:
    """The kinds that one server serves.

    Args:
        absent: plurals that are not installed.

    Raises:
        ValueError: an absent plural is unknown anyway.
    """

    def __init__(self, absent: Collection[str] = ()) -> None:
        if unknown := set(absent) - {kind.plural for kind in KINDS}:
            raise ValueError(f"absent kinds that were never known: {sorted(unknown)}")
        self._by_plural = {kind.plural: kind for kind in KINDS if kind.plural not in absent}
        self._by_type = {(kind.api_version, kind.name): kind for kind in self}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_plural.values())

    def of_plural(self, plural: str) -> Kind:
        """The kind with this plural; KeyError if it is not served."""
        return self._by_plural[plural]

    def at(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind under this path, or None."""
        kind = self._by_plural.get(plural)
        return kind if kind and (kind.group, kind.version) == (group, version) else None

    def of_type(self, api_version: object, name: object) -> Kind:
        """The kind with this `apiVersion` and `kind`.

        Raises:
            ApiError: 400 if it is not served.
        """
        kind = self._by_type.get((str(api_version), str(name)))
        if kind is None:
            raise ApiError.bad_request(
                f'no kind "{name}" is registered for version "{api_version}"'
            )
        return kind
