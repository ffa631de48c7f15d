"""Kinds that may stand in manifests, so that a kind that nobody knows is told from others'."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pdrouter.nearest import find_nearest

_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"

_SERVED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "": {
        "v1": (
            "Binding",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "Service",
            "ServiceAccount",
        )
    },
    "apps": {"v1": ("ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet")},
    "autoscaling": {"v2 v1": ("HorizontalPodAutoscaler",)},
    "batch": {"v1": ("CronJob", "Job")},
    "policy": {"v1": ("Eviction", "PodDisruptionBudget")},
    "networking.k8s.io": {
        "v1": ("IPAddress", "Ingress", "IngressClass", "NetworkPolicy", "ServiceCIDR")
    },
    "rbac.authorization.k8s.io": {
        "v1": ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    },
    _GATEWAY_API: {
        "v1 v1beta1": ("Gateway", "GatewayClass", "HTTPRoute", "ReferenceGrant"),
        "v1": ("GRPCRoute", "ListenerSet"),
        "v1 v1alpha3 v1alpha2": ("BackendTLSPolicy", "TLSRoute"),
        "v1 v1alpha2": ("TCPRoute", "UDPRoute"),
    },
    _ENVOY_GATEWAY: {
        "v1alpha1": (
            "Backend",
            "BackendTrafficPolicy",
            "ClientTrafficPolicy",
            "EnvoyExtensionPolicy",
            "EnvoyGateway",
            "EnvoyPatchPolicy",
            "EnvoyProxy",
            "HTTPRouteFilter",
            "SecurityPolicy",
        )
    },
    "inference.networking.k8s.io": {"v1": ("InferencePool",)},
    "inference.networking.x-k8s.io": {
        "v1alpha2": ("InferenceModel", "InferenceObjective", "InferencePool")
    },
    "model.aibrix.ai": {"v1alpha1": ("ModelAdapter", "ModelClaim")},
}
"""Kinds by group and versions, the best version first."""

KNOWN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    group: {kind: tuple(versions.split()) for versions, kinds in said.items() for kind in kinds}
    for group, said in _SERVED.items()
}
"""Versions by group and kind: of Kubernetes, and of what a gateway is made of."""


class Oddity(NamedTuple):
    """What is odd about a document.

    Attributes:
        field: where.
        problem: what is wrong there.
        fix: what to write instead.
    """

    field: str
    problem: str
    fix: str


def find_oddity(document: Mapping[str, Any]) -> Oddity | None:
    """Return why the API server would not know what a document is; None if it may know."""
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str) or not document[field]:
            return Oddity(field, "it is missing, or no text", "say what the document is")
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping) or not (
        metadata.get("name") or metadata.get("generateName")
    ):
        return Oddity("metadata.name", "the object has no name", "give it one")
    version, kind = str(document["apiVersion"]), str(document["kind"])
    group, _, own_version = version.rpartition("/")
    kinds = KNOWN.get(group)
    if kinds is None:
        return _judge_group(group, kind)
    if kind not in kinds:
        return _judge_kind(group, version, kind)
    if own_version not in kinds[kind]:
        right = _join(group, kinds[kind][0])
        return Oddity("apiVersion", f"{kind} has no version {version}", f"write {right}")
    return None


def _judge_group(group: str, kind: str) -> Oddity | None:
    """Judge a group that is not known: it may be another project's."""
    near = find_nearest(group, KNOWN)
    if near and kind in KNOWN[near]:
        right = _join(near, KNOWN[near][kind][0])
        return Oddity(
            "apiVersion", f"there is no API group {group} with a {kind}", f"write {right}"
        )
    return None


def _judge_kind(group: str, version: str, kind: str) -> Oddity:
    homes = [other for other, kinds in KNOWN.items() if kind in kinds]
    if homes:
        right = _join(homes[0], KNOWN[homes[0]][kind][0])
        return Oddity("apiVersion", f"{version} has no {kind}", f"write {right}")
    near = find_nearest(kind, KNOWN[group])
    fix = f"did you mean {near}?" if near else f"{version} has {', '.join(KNOWN[group])}"
    return Oddity("kind", f"{version} has no kind {kind}", fix)


def _join(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version
