"""The kinds of objects that the doctor reads, and where the API server serves them."""

from dataclasses import dataclass

from pdrouter.tools.doctor.objects.access import (
    ClusterRole,
    ClusterRoleBinding,
    RoleBinding,
    RoleManifest,
)
from pdrouter.tools.doctor.objects.base import KubeObject
from pdrouter.tools.doctor.objects.envoy_gateway import (
    Backend,
    BackendPolicy,
    ClientPolicy,
    EnvoyProxy,
    ExtensionPolicy,
    PatchPolicy,
    SecurityPolicy,
)
from pdrouter.tools.doctor.objects.gateway_api import (
    BackendTlsPolicy,
    Gateway,
    GatewayClass,
    HttpRoute,
    InferencePool,
    ReferenceGrant,
)
from pdrouter.tools.doctor.objects.workloads import (
    DaemonSet,
    Deployment,
    DisruptionBudget,
    ModelAdapter,
    PodManifest,
    Service,
    StatefulSet,
)


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """One kind of objects.

    Attributes:
        name: value of `kind`.
        group: API group; empty for the core.
        version: version that the cluster is asked for.
        plural: its name in paths.
        type: what its objects are decoded to.
        namespaced: whether its objects are in namespaces.
    """

    name: str
    group: str
    version: str
    plural: str
    type: type[KubeObject]
    namespaced: bool = True

    def path(self, namespace: str) -> str:
        """Return where they are listed; those of all namespaces for an empty name."""
        root = f"/apis/{self.group}" if self.group else "/api"
        scope = f"namespaces/{namespace}/" if namespace and self.namespaced else ""
        return f"{root}/{self.version}/{scope}{self.plural}"


_RBAC = "rbac.authorization.k8s.io"
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"

KINDS = (
    ObjectKind("Pod", "", "v1", "pods", PodManifest),
    ObjectKind("Service", "", "v1", "services", Service),
    ObjectKind("Deployment", "apps", "v1", "deployments", Deployment),
    ObjectKind("StatefulSet", "apps", "v1", "statefulsets", StatefulSet),
    ObjectKind("DaemonSet", "apps", "v1", "daemonsets", DaemonSet),
    ObjectKind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets", DisruptionBudget),
    ObjectKind("Role", _RBAC, "v1", "roles", RoleManifest),
    ObjectKind("RoleBinding", _RBAC, "v1", "rolebindings", RoleBinding),
    ObjectKind("ClusterRole", _RBAC, "v1", "clusterroles", ClusterRole, namespaced=False),
    ObjectKind(
        "ClusterRoleBinding",
        _RBAC,
        "v1",
        "clusterrolebindings",
        ClusterRoleBinding,
        namespaced=False,
    ),
    ObjectKind(
        "GatewayClass", _GATEWAY_API, "v1", "gatewayclasses", GatewayClass, namespaced=False
    ),
    ObjectKind("Gateway", _GATEWAY_API, "v1", "gateways", Gateway),
    ObjectKind("HTTPRoute", _GATEWAY_API, "v1", "httproutes", HttpRoute),
    ObjectKind("BackendTLSPolicy", _GATEWAY_API, "v1", "backendtlspolicies", BackendTlsPolicy),
    # Older Gateway APIs serve it in this version only.
    ObjectKind("ReferenceGrant", _GATEWAY_API, "v1beta1", "referencegrants", ReferenceGrant),
    ObjectKind("EnvoyProxy", _ENVOY_GATEWAY, "v1alpha1", "envoyproxies", EnvoyProxy),
    ObjectKind(
        "EnvoyExtensionPolicy",
        _ENVOY_GATEWAY,
        "v1alpha1",
        "envoyextensionpolicies",
        ExtensionPolicy,
    ),
    ObjectKind(
        "ClientTrafficPolicy", _ENVOY_GATEWAY, "v1alpha1", "clienttrafficpolicies", ClientPolicy
    ),
    ObjectKind(
        "BackendTrafficPolicy", _ENVOY_GATEWAY, "v1alpha1", "backendtrafficpolicies", BackendPolicy
    ),
    ObjectKind("EnvoyPatchPolicy", _ENVOY_GATEWAY, "v1alpha1", "envoypatchpolicies", PatchPolicy),
    ObjectKind("SecurityPolicy", _ENVOY_GATEWAY, "v1alpha1", "securitypolicies", SecurityPolicy),
    ObjectKind("Backend", _ENVOY_GATEWAY, "v1alpha1", "backends", Backend),
    ObjectKind(
        "InferencePool", "inference.networking.k8s.io", "v1", "inferencepools", InferencePool
    ),
    ObjectKind("ModelAdapter", "model.aibrix.ai", "v1alpha1", "modeladapters", ModelAdapter),
)

BY_GROUP_AND_NAME = {(kind.group, kind.name): kind for kind in KINDS}
