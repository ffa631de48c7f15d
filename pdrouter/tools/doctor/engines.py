"""Engines as their manifests describe them: one for each workload, or pod without one."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

import msgspec

from pdrouter.cluster.kubernetes import containers
from pdrouter.cluster.kubernetes.objects import (
    GROUP_INDEX,
    MODEL,
    ROLE,
    Condition,
    KubePod,
    ObjectMeta,
    PodRules,
    PodStatus,
)
from pdrouter.cluster.pod_addresses import AddressRules
from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.registry import WIRES
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.workloads import (
    DaemonSet,
    Deployment,
    PodManifest,
    PodSpecManifest,
    PortManifest,
    StatefulSet,
    Variable,
    Workload,
)
from pdrouter.tools.doctor.router import is_router
from pdrouter.tools.doctor.snapshot import Snapshot

# A router may have been told to accept pods of its own machine.
_ADDRESSES = AddressRules(tuple(map(ip_network, ("0.0.0.0/0", "::/0", "127.0.0.0/8"))))
_RULES = PodRules(WIRES, _ADDRESSES)
_READY = PodStatus("192.0.2.1", [Condition("Ready", "True")])
"""A status that is no obstacle: what remains lies in the manifest."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Pods that are made alike.

    Attributes:
        ref: the workload, or the pod where there is none.
        prefix: path of the pod in the object.
        metadata: labels and annotations of its pods.
        spec: `spec` of its pods.
        replicas: how many there are to be.
        pod: what such a pod means to the router, were it ready; None if it names no model.
        ranks: the same, one for each of its data-parallel ranks.
    """

    ref: ObjectRef
    prefix: str
    metadata: ObjectMeta
    spec: PodSpecManifest
    replicas: int
    pod: Pod | None
    ranks: tuple[Pod, ...]

    @property
    def role(self) -> Role | None:
        """Its part in disaggregation; None if it has none."""
        name = self.metadata.labels.get(ROLE)
        return Role(name) if name in (Role.PREFILL, Role.DECODE) else None

    @property
    def ports(self) -> tuple[PortManifest, ...]:
        """The TCP ports that its containers declare."""
        return tuple(
            port
            for container in self.spec.containers
            for port in container.ports
            if port.protocol == "TCP"
        )

    def variable(self, name: str) -> Variable | None:
        """Return an environment variable of any of its containers."""
        return next(
            (
                variable
                for container in self.spec.containers
                for variable in container.env
                if variable.name == name
            ),
            None,
        )


def find_engines(snapshot: Snapshot) -> Iterator[Engine]:
    """Yield the engines; of one over several nodes, the head that answers requests."""
    for ref, prefix, metadata, spec, replicas in find_pods(snapshot):
        names = metadata.labels.keys() | metadata.annotations.keys()
        if not names & {MODEL, ROLE} or any(map(is_router, spec.containers)):
            continue
        if metadata.labels.get(GROUP_INDEX, "0") != "0":
            continue
        known = KubePod(metadata, _READY, _as_router_reads(spec))
        ranks = _RULES.read_ranks(known)
        yield Engine(ref, prefix, metadata, spec, replicas, _RULES.read(known), ranks)


def read_running_pods(snapshot: Snapshot) -> list[Pod]:
    """Return the pods of a cluster as the router sees them."""
    pods = (
        _RULES.read(KubePod(pod.metadata, pod.status, _as_router_reads(pod.spec)))
        for pod in snapshot.of(PodManifest)
    )
    return [pod for pod in pods if pod is not None]


def _as_router_reads(spec: PodSpecManifest) -> containers.PodSpec:
    return containers.PodSpec(
        [
            containers.Container(
                each.name,
                [containers.ContainerPort(port.container_port) for port in each.ports],
                [containers.EnvironmentVariable(one.name, one.value or "") for one in each.env],
            )
            for each in spec.containers
        ]
    )


def find_pods(
    snapshot: Snapshot,
) -> Iterator[tuple[ObjectRef, str, ObjectMeta, PodSpecManifest, int]]:
    """Yield what pods are made of: the object and the path in it, metadata, spec, and how many."""
    for workload in snapshot.of(Workload):
        template = workload.spec.template
        metadata = ObjectMeta(
            name=workload.metadata.name,
            namespace=workload.metadata.namespace,
            uid=str(workload.ref),
            labels=template.metadata.labels,
            annotations=template.metadata.annotations,
        )
        yield workload.ref, "spec.template.", metadata, template.spec, workload.spec.replicas
    owners: dict[str, type[Workload]] = {
        "ReplicaSet": Deployment,
        "StatefulSet": StatefulSet,
        "DaemonSet": DaemonSet,
    }
    for pod in snapshot.of(PodManifest):
        # Those of a workload are described by its template.
        kinds = [owners.get(owner.kind) for owner in pod.metadata.owner_references]
        if not any(kind and snapshot.has_read(kind, pod.metadata.namespace) for kind in kinds):
            uid = pod.metadata.uid or str(pod.ref)
            yield pod.ref, "", msgspec.structs.replace(pod.metadata, uid=uid), pod.spec, 1
