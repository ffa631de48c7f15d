"""The settings that say where the pods come from."""

from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import (
    ADDRESSES,
    BOOLEAN,
    LABELS,
    MODEL_NAMESPACES,
    NAMES,
    NETWORKS,
    PATH,
    SELECTORS,
    TEXT,
    seconds,
)


@dataclass(frozen=True)
class PodSettings:
    """Settings of the source of pods."""

    endpoints: Path | None = declare(
        None,
        "PDROUTER_ENDPOINTS",
        PATH,
        "File that lists the pods (endpoints-file.md). It is read again when it changes.",
        "--endpoints",
    )
    endpoints_poll_s: float = declare(
        1.0,
        "PDROUTER_ENDPOINTS_POLL",
        seconds(0.01, 3600),
        "Time between two looks at the endpoints file.",
        advanced=True,
    )
    kubernetes: bool = declare(
        False,
        "PDROUTER_KUBERNETES",
        BOOLEAN,
        "Whether pods come from the Kubernetes API.",
        "--kubernetes",
    )
    kubeconfig: Path | None = declare(
        None,
        "KUBECONFIG",
        PATH,
        "Kubeconfig file for the API server. Unset: the service account of the router's own pod; "
        "outside of a pod, `~/.kube/config`.",
        "--kubeconfig",
    )
    namespaces: tuple[str, ...] = declare(
        (),
        "PDROUTER_NAMESPACES",
        NAMES,
        "Namespaces whose pods are watched. `*` is all, as in aibrix, and needs a ClusterRole. "
        "Unset: the router's own; with a kubeconfig file, that of its current context.",
        "--namespaces",
    )
    model_namespaces: tuple[tuple[str, tuple[str, ...]], ...] = declare(
        (),
        "PDROUTER_MODEL_NAMESPACES",
        MODEL_NAMESPACES,
        "Which namespaces may serve a model or an adapter, such as `llama=prod;demo-*=a,b;*=lab`. "
        "`*` is any text, or any namespace; the first name that fits decides. A model that none "
        "fits may be served by any.",
    )
    own_namespace: str = declare(
        "",
        "POD_NAMESPACE",
        TEXT,
        "The router's own namespace. Unset: that of its pod's service account.",
        advanced=True,
    )
    own_name: str = declare(
        "",
        "POD_NAME",
        TEXT,
        "The router's own name, as its Service and its StatefulSet have it. Unset: its host name, "
        "which is another one with `hostNetwork` or `hostname`.",
        advanced=True,
    )
    own_addresses: tuple[str, ...] = declare(
        (),
        "POD_IP",
        ADDRESSES,
        "The router's own addresses: no engine has them. Those of a pod are found without it.",
        advanced=True,
    )
    pod_networks: tuple[str, ...] = declare(
        (),
        "PDROUTER_POD_NETWORKS",
        NETWORKS,
        "Networks in which pods are, such as `10.8.0.0/14`; a pod with another address is refused. "
        "Loopback and link-local addresses are refused unless such a network is named. Unset: any "
        "other address.",
    )
    pod_selectors: tuple[str, ...] = declare(
        ("role-name", "!role-name,model.aibrix.ai/name"),
        "PDROUTER_POD_SELECTORS",
        SELECTORS,
        "Label selectors of the pods; what any of them selects is watched.",
    )
    model_claims: bool = declare(
        False,
        "PDROUTER_MODEL_CLAIMS",
        BOOLEAN,
        "Whether models are served that aibrix's ModelClaims put on pods of a warm pool. Requests "
        "for one that sleeps have it woken, by a POST to port 8080 of its pod.",
    )
    merge_namespaces: bool = declare(
        False,
        "PDROUTER_MERGE_NAMESPACES",
        BOOLEAN,
        "Whether the same model name in several namespaces is one model. Otherwise requests say "
        "`namespace/name` where the name alone is ambiguous. Pairs never cross namespaces.",
    )
    match_revisions: bool = declare(
        True,
        "PDROUTER_MATCH_REVISIONS",
        BOOLEAN,
        "Whether pairs are of one version of the engine: that of the pods' label, or else of their "
        "image (routing.md).",
    )
    topology_labels: tuple[str, ...] = declare(
        (
            "topology.k8s.aws/network-node-layer-3",
            "topology.k8s.aws/network-node-layer-2",
            "topology.k8s.aws/network-node-layer-1",
            "topology.kubernetes.io/zone",
        ),
        "PDROUTER_TOPOLOGY_LABELS",
        LABELS,
        "Labels of pods that say where they are, the nearest place first; the node is nearer than "
        "all of them. Near pods are preferred as pairs (routing.md).",
    )
    hardware_labels: tuple[str, ...] = declare(
        (
            "node.kubernetes.io/instance-type",
            "nvidia.com/gpu.product",
            "cloud.google.com/gke-accelerator",
        ),
        "PDROUTER_HARDWARE_LABELS",
        LABELS,
        "Labels that say what a pod runs on; the first counts that the pod has, or asks its node "
        "for (`nodeSelector`). Speeds are compared among pods of the same (routing.md).",
        advanced=True,
    )
    rollout_patience_s: float = declare(
        3600.0,
        "PDROUTER_ROLLOUT_PATIENCE",
        seconds(1, 30 * 86400),
        "How long prefill and decode pods that had an image in common, and have none any more, "
        "form no pairs although all of them are ready: the second role may be about to follow.",
        advanced=True,
    )
    httproute_namespace: str = declare(
        "aibrix-system",
        "PDROUTER_HTTPROUTE_NAMESPACE",
        TEXT,
        "Where the models' own HTTPRoutes are, for requests without a strategy.",
        advanced=True,
    )
    httproute_ttl_s: float = declare(
        30.0,
        "AIBRIX_HTTPROUTE_CACHE_TTL",
        seconds(0, 86400, above=True),
        "How long the status of such a route is remembered.",
        advanced=True,
    )
