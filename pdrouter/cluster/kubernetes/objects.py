"""Kubernetes objects, as far as they are of interest, and what they mean to the router.

Decoding only these members skips the rest at C speed: on real pods, half of the bytes are
bookkeeping of the API server.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType

import msgspec

from pdrouter.cluster.kubernetes.claims import read_claims
from pdrouter.cluster.kubernetes.containers import (
    ContainerStatus,
    PodSpec,
    find_engine,
    has_neuron,
    identify_image,
    identify_start,
)
from pdrouter.cluster.kubernetes.ranks import find_rank_flaw, find_ranks
from pdrouter.cluster.model_namespaces import ANY_NAMESPACE, ModelNamespaces
from pdrouter.cluster.pod_addresses import ANY_POD_ADDRESS, AddressRules
from pdrouter.cluster.pod_config import read_config
from pdrouter.cluster.pods import (
    TERMINATING,
    UNSAID_PORT,
    Claim,
    Pod,
    Role,
    Wires,
    find_unsupported,
)

MODEL = "model.aibrix.ai/name"
PORT = "model.aibrix.ai/port"
METRICS_PORT = "model.aibrix.ai/metric-port"
ENGINE = "model.aibrix.ai/engine"
CONFIG = "model.aibrix.ai/config"
KV_CONNECTOR = "model.aibrix.ai/kv-connector-type"
BOOTSTRAP_PORT = "model.aibrix.ai/sglang-bootstrap-port"
ROLE = "role-name"
ROLESET = "roleset-name"
REVISIONS = (
    "pdrouter/revision",
    "llm-d.ai/compatibility-revision",
    "disaggregatedset.x-k8s.io/revision",
)
"""Labels with the version of a pod, the most deliberate first."""
COMPUTES_PROMPTS = "pdrouter/computes-prompts"
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
RAY_NODE_TYPE = "ray.io/node-type"
GROUP_INDEX = "stormservice.orchestration.aibrix.ai/pod-group-index"

NO_BOOTSTRAP_PORT = "null"
_BOOLEANS: Mapping[str, bool] = MappingProxyType({"true": True, "false": False})
DEFAULT_PORT = 8000
_PORT_NUMBER = re.compile("[1-9][0-9]{0,4}")
# An annotation may hold any text, of up to 256 KiB.
_LONGEST_MODEL = 512
_LONGEST_WORD = 64
_STARTING = timedelta(seconds=5)
"""Within it, a pod that starts is said not to be ready for the first time."""


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    """`metadata` of any object."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """Return a label or, where there is none of that name, an annotation."""
        return self.labels.get(key) or self.annotations.get(key)


class Condition(msgspec.Struct, frozen=True):
    """A condition in the status of an object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: str | None = msgspec.field(default=None, name="lastTransitionTime")


class PodStatus(
    msgspec.Struct,
    frozen=True,
    rename={"pod_ip": "podIP", "start_time": "startTime", "containers": "containerStatuses"},
):
    """`status` of a pod."""

    pod_ip: str = ""
    conditions: list[Condition] = []
    phase: str = ""
    start_time: str | None = None
    containers: list[ContainerStatus] = []


class KubeNamespace(msgspec.Struct, frozen=True):
    """A namespace as the API server tells it."""

    metadata: ObjectMeta


class KubePod(msgspec.Struct, frozen=True):
    """A pod as the API server tells it."""

    metadata: ObjectMeta
    status: PodStatus = PodStatus()
    spec: PodSpec = PodSpec()


class AdapterSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a ModelAdapter."""

    base_model: str = ""


class AdapterStatus(msgspec.Struct, frozen=True):
    """`status` of a ModelAdapter."""

    instances: list[str] = []


class KubeModelAdapter(msgspec.Struct, frozen=True):
    """A ModelAdapter (`model.aibrix.ai/v1alpha1`) as the API server tells it."""

    metadata: ObjectMeta
    spec: AdapterSpec = AdapterSpec()
    status: AdapterStatus = AdapterStatus()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that some pods have loaded.

    Attributes:
        namespace: its namespace, and that of its pods.
        name: name that requests use.
        base_model: model that it adapts; empty if the object does not say.
        instances: names of the pods that have loaded it.
    """

    namespace: str
    name: str
    base_model: str
    instances: frozenset[str]

    def concerns(self, pod: Pod) -> bool:
        """Return whether the pods of this adapter may be others when this one has changed."""
        return pod.namespace == self.namespace and (
            pod.own_name in self.instances or self.base_model in ("", pod.model)
        )


def read_adapter(adapter: KubeModelAdapter) -> Adapter:
    """Return what a ModelAdapter means."""
    metadata = adapter.metadata
    return Adapter(
        metadata.namespace,
        metadata.name,
        adapter.spec.base_model or metadata.get(MODEL) or "",
        frozenset(adapter.status.instances),
    )


@dataclass(frozen=True, slots=True)
class PodRules:
    """What pods may say of themselves.

    Attributes:
        wires: engines and connectors that the router can speak to.
        addresses: which addresses they may have.
        model_namespaces: which namespaces may serve which models.
        match_revisions: whether pairs are of one version.
        topology_labels: labels that say where a pod is, within its node's place, nearest first.
        hardware_labels: labels that say what a pod runs on, the first that it has, or asks its node
            for, counts.
        model_claims: whether annotations of ModelClaims tell of engines.
    """

    wires: Wires
    addresses: AddressRules = ANY_POD_ADDRESS
    model_namespaces: ModelNamespaces = ANY_NAMESPACE
    match_revisions: bool = True
    topology_labels: tuple[str, ...] = ()
    hardware_labels: tuple[str, ...] = ()
    model_claims: bool = False

    def read_ranks(self, pod: KubePod) -> tuple[Pod, ...]:
        """Return what a Kubernetes pod means, one for each data-parallel rank and each claim.

        It is one where what it says of ranks cannot be, and none if it names no model.
        """
        known = self.read(pod)
        claimed = self._read_claimed(pod) if self.model_claims else ()
        if known is None:
            return claimed
        ranks = find_ranks(pod.metadata.get, pod.spec.containers, known.port).split(known)
        return (*ranks, *claimed)

    def _read_claimed(self, pod: KubePod) -> tuple[Pod, ...]:
        claims = read_claims(pod.metadata.annotations)
        return tuple(claim.place(self._describe(pod, claim.model)) for claim in claims)

    def read(self, pod: KubePod) -> Pod | None:
        """Return what a Kubernetes pod means; None if it names no model."""
        model = pod.metadata.get(MODEL)
        return self._describe(pod, model) if model else None

    def _describe(self, pod: KubePod, model: str) -> Pod:
        metadata = pod.metadata
        engine = (metadata.get(ENGINE) or next(iter(self.wires))).lower()[:_LONGEST_WORD]
        connector = metadata.get(KV_CONNECTOR)
        connector = None if connector is None else connector.lower()[:_LONGEST_WORD]
        config = metadata.annotations.get(CONFIG)
        refusal = self._find_refusal(pod, model)
        role = _read_role(metadata.labels.get(ROLE))
        # Who serves whole requests needs no wire: any engine with OpenAI's API will do.
        whole = role in (Role.BOTH, Role.OTHER)
        unsupported = "" if whole else find_unsupported(engine, connector, self.wires)
        flaw = refusal or _find_flaw(pod) or unsupported
        port = _read_port(metadata.get(PORT)) or DEFAULT_PORT
        ports = find_ranks(metadata.get, pod.spec.containers, port).ports
        port = ports[0] if ports else port
        container = find_engine(
            pod.spec.containers,
            pod.status.containers,
            port,
            main=metadata.annotations.get(DEFAULT_CONTAINER),
        )
        known = Pod.create(
            uid=metadata.uid,
            name=metadata.name,
            namespace=metadata.namespace,
            ip=pod.status.pod_ip,
            port=port,
            started=identify_start(container),
            metrics_port=_read_port(metadata.get(METRICS_PORT)),
            model=model[:_LONGEST_MODEL],
            role=role,
            roleset=metadata.labels.get(ROLESET, ""),
            engine=engine,
            kv_connector=connector,
            revision=find_revision(metadata) if self.match_revisions else "",
            image=identify_image(container) if self.match_revisions else "",
            places=self._find_places(pod),
            obstacle=refusal or _find_delay(pod) or flaw,
            refused=bool(refusal),
            unsupported=unsupported,
            claim=_find_claim(pod.status, flaw),
            labels=metadata.labels,
            config=read_config(config) if config else None,
            bootstrap_port=read_bootstrap_port(metadata),
            hardware=self._find_hardware(pod),
        )
        return replace(
            known,
            computes_prompts=_BOOLEANS.get(metadata.get(COMPUTES_PROMPTS) or ""),
            neuron=has_neuron(pod.spec.containers),
        )

    def _find_places(self, pod: KubePod) -> tuple[str, ...]:
        labels = pod.metadata.labels
        return pod.spec.node_name, *(labels.get(label, "") for label in self.topology_labels)

    def _find_hardware(self, pod: KubePod) -> str:
        labels, asked = pod.metadata.labels, pod.spec.node_selector
        found = (labels.get(label) or asked.get(label) for label in self.hardware_labels)
        return next(filter(None, found), "")

    def _find_refusal(self, pod: KubePod, model: str) -> str:
        """Return why a pod is none of its model's; nothing if it is one."""
        namespace = pod.metadata.namespace
        if len(model) > _LONGEST_MODEL:
            return f"the model's name is longer than {_LONGEST_MODEL} characters"
        if not self.model_namespaces.allow(namespace, model):
            return f"namespace {namespace} may not serve model {model!r}"
        return self.addresses.find_fault(pod.status.pod_ip) if pod.status.pod_ip else ""


def find_revision(metadata: ObjectMeta) -> str:
    """Return the version that a pod's labels say; nothing if they say none."""
    return next(filter(None, map(metadata.labels.get, REVISIONS)), "")


def read_bootstrap_port(metadata: ObjectMeta) -> int | None:
    """Return where other engines meet a pod; None where they are to take their own default.

    What is no port says nothing, as in aibrix; the doctor tells of it.
    """
    text = metadata.get(BOOTSTRAP_PORT)
    if text == NO_BOOTSTRAP_PORT:
        return None
    return _read_port(text) or UNSAID_PORT


def _find_flaw(pod: KubePod) -> str:
    """Return why a pod cannot serve as it was made; nothing if it can.

    Of the pods of a multi-node engine, only the head answers requests.
    """
    metadata = pod.metadata
    port = metadata.get(PORT)
    if metadata.labels.get(GROUP_INDEX, "0") != "0":
        return "not the head of its group"
    if metadata.labels.get(RAY_NODE_TYPE) == "worker":
        return "a worker of its Ray cluster, not the head"
    if port is not None and _read_port(port) is None:
        return f"port {port!r:.100} is invalid"
    return find_rank_flaw(metadata.get, pod.spec.containers, _read_port(port) or DEFAULT_PORT)


def _find_delay(pod: KubePod) -> str:
    """Return why a pod gets no requests now; nothing if it may get some.

    A pod is out as soon as its deletion timestamp appears, long before it is deleted.
    """
    if pod.metadata.deletion_timestamp is not None:
        return TERMINATING
    if not pod.status.pod_ip:
        return "no address"
    return "" if _is_ready(pod.status) else "not ready"


def _is_ready(status: PodStatus) -> bool:
    return any(
        condition.type == "Ready" and condition.status == "True" for condition in status.conditions
    )


def _find_claim(status: PodStatus, flaw: str) -> Claim:
    if flaw or status.phase in ("Succeeded", "Failed"):
        return Claim.NONE
    return Claim.MAKES if status.pod_ip and _has_been_ready(status) else Claim.HOLDS


def _has_been_ready(status: PodStatus) -> bool:
    """Return whether a pod is ready, or was once.

    One that never was is said not to be ready since it was started.
    """
    for condition in status.conditions:
        if condition.type == "Ready":
            if condition.status == "True":
                return True
            try:
                changed = datetime.fromisoformat(condition.since or "")
                return changed - datetime.fromisoformat(status.start_time or "") > _STARTING
            except (ValueError, TypeError):
                # The API server's times can be read; whoever writes others gains nothing by it.
                return False
    return False


def _read_role(name: str | None) -> Role:
    if name is None:
        return Role.BOTH
    # Other roles, such as a router of its own, are part of a deployment but serve no requests.
    return Role(name) if name in (Role.ENCODE, Role.PREFILL, Role.DECODE) else Role.OTHER


def _read_port(text: str | None) -> int | None:
    if text is None or _PORT_NUMBER.fullmatch(text) is None or int(text) > 65535:
        return None
    return int(text)
