"""LoRA adapters, and which pods serve them."""

from collections.abc import Iterator
from dataclasses import dataclass

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.kubernetes.objects import MODEL, Adapter
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.tools.doctor.engines import read_running_pods
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.workloads import ModelAdapter, PodManifest


@dataclass(frozen=True, slots=True)
class _Adapted:
    """An adapter, and what the router makes of it.

    Attributes:
        thing: the object.
        loaded: pods that have loaded it, or are to load it.
        served: pods that serve requests for its name; None if none does.
        shadowed: whether its name is that of a model that pods serve.
        field: what names the pods.
    """

    thing: ModelAdapter
    loaded: tuple[Pod, ...]
    served: ModelPods | None
    shadowed: bool
    field: str


def _find_unserved(installation: Installation) -> Iterator[Defect]:
    for adapted in _read_adapters(installation):
        if adapted.shadowed or _has_decode(adapted):
            continue
        problem = "it names no pod that exists"
        if adapted.loaded:
            problem = "it names prefill pods only, and their roleset has no decode pod of its model"
        yield Defect(
            adapted.thing.ref,
            adapted.field,
            problem,
            "let it select decode pods of the base model as well",
        )


def _find_without_decode(installation: Installation) -> Iterator[Defect]:
    for adapted in _read_adapters(installation):
        prefill_only = all(pod.role is Role.PREFILL for pod in adapted.loaded)
        if adapted.loaded and prefill_only and not adapted.shadowed and _has_decode(adapted):
            yield Defect(
                adapted.thing.ref,
                adapted.field,
                "it names prefill pods only; the base model's decode pods of their roleset decode",
                "let it select decode pods as well, for example by the label model.aibrix.ai/name",
            )


def _find_shadowed(installation: Installation) -> Iterator[Defect]:
    for adapted in _read_adapters(installation):
        if adapted.shadowed:
            yield Defect(
                adapted.thing.ref,
                "metadata.name",
                f"pods serve a model of the name {adapted.thing.metadata.name}: requests go to all "
                "of them, whether they have loaded the adapter or not",
                "give the adapter a name of its own, or remove it if the model itself is meant",
            )


def _has_decode(adapted: _Adapted) -> bool:
    served = adapted.served
    return served is not None and any(pod.role is not Role.PREFILL for pod in served.pods)


def _read_adapters(installation: Installation) -> Iterator[_Adapted]:
    snapshot = installation.snapshot
    catalog = Catalog(merge_namespaces=False)
    pods = (
        read_running_pods(snapshot)
        if snapshot.live
        else [engine.pod for engine in installation.engines if engine.pod is not None]
    )
    for pod in pods:
        catalog.put_pod(pod)
    models = {(pod.namespace, pod.model) for pod in pods}
    things = [
        thing
        for thing in snapshot.of(ModelAdapter)
        if snapshot.has_read(PodManifest, thing.metadata.namespace)
    ]
    adapters = {thing.ref: _read_adapter(installation, thing) for thing in things}
    for ref, adapter in adapters.items():
        catalog.put_adapter(str(ref), adapter)
    view = catalog.build(0.0)
    for thing in things:
        adapter = adapters[thing.ref]
        yield _Adapted(
            thing,
            tuple(
                pod
                for pod in pods
                if pod.namespace == adapter.namespace and pod.name in adapter.instances
            ),
            view.models.get(f"{adapter.namespace}/{adapter.name}"),
            (adapter.namespace, adapter.name) in models,
            "status.instances" if snapshot.live else "spec.podSelector",
        )


def _read_adapter(installation: Installation, thing: ModelAdapter) -> Adapter:
    """Return an adapter; without a cluster, the pods are those that it selects."""
    instances = frozenset(thing.status.instances)
    selector = thing.spec.pod_selector
    if not installation.snapshot.live and selector is not None:
        instances = frozenset(
            engine.metadata.name
            for engine in installation.engines
            if engine.metadata.namespace == thing.metadata.namespace
            and selector.matches(engine.metadata.labels)
        )
    return Adapter(
        thing.metadata.namespace,
        thing.metadata.name,
        thing.spec.base_model or thing.metadata.get(MODEL) or "",
        instances,
    )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "adapter-unserved",
        Severity.ERROR,
        "No pod can serve an adapter's requests.",
        "Requests for it get a 404 or a 503.",
        _find_unserved,
    ),
    Check(
        "adapter-without-decode",
        Severity.WARNING,
        "An adapter names no decode pod.",
        "Only the prefill leg runs with the adapter's weights; a decode pod that has not loaded it "
        "refuses its name or continues with those of the base model.",
        _find_without_decode,
    ),
    Check(
        "adapter-shadowed",
        Severity.WARNING,
        "An adapter has the name of a model that pods serve.",
        "The router sends requests for the name to that model's pods: the adapter changes nothing.",
        _find_shadowed,
    ),
)
