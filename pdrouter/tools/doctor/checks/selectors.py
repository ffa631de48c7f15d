"""Selectors: of a workload, which must match its own pods, and of the Services in front of them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from pdrouter.nearest import find_nearest
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.workloads import PodManifest, Service, Workload
from pdrouter.tools.doctor.references import find_namings
from pdrouter.tools.doctor.snapshot import Snapshot

_NUMBER = re.compile("[0-9]+")


def _find_mismatches(installation: Installation) -> Iterator[Defect]:
    for workload in installation.snapshot.of(Workload):
        selector = workload.spec.selector
        labels = workload.spec.template.metadata.labels
        if selector is None or not (selector.match_labels or selector.match_expressions):
            yield Defect(
                workload.ref,
                "spec.selector",
                "there is none",
                "set matchLabels to labels of the pod template",
            )
        elif not selector.matches(labels):
            wanted = ", ".join(
                f"{key}={value} (the template has {_show(labels, key)})"
                for key, value in selector.match_labels.items()
                if labels.get(key) != value
            )
            yield Defect(
                workload.ref,
                "spec.selector",
                f"it does not match spec.template.metadata.labels: {wanted or 'matchExpressions'}",
                "make both the same",
            )


def _show(labels: Mapping[str, str], key: str) -> str:
    if key in labels:
        return labels[key]
    near = find_nearest(key, labels)
    return f"{near}={labels[near]}" if near else "none"


def _find_lonely_services(installation: Installation) -> Iterator[Defect]:
    snapshot = installation.snapshot
    wanted = {naming.target for naming in find_namings(snapshot) if naming.backend}
    pods = _Pods(snapshot)
    for service in snapshot.of(Service):
        selector, namespace = service.spec.selector, service.metadata.namespace
        if not selector or service.spec.type == "ExternalName" or pods.have(namespace, selector):
            continue
        near = None
        if snapshot.live:
            # Others' Services may wait for pods as long as they like.
            judged = service.ref in wanted and snapshot.has_read(PodManifest, namespace)
        else:
            labels = pods.of(namespace)
            near = _find_near_labels(selector, labels)
            others = any(selector.keys() <= each.keys() for each in labels)
            judged = near is not None or (service.ref in wanted and others)
        if judged:
            shown = ", ".join(f"{key}={value}" for key, value in selector.items())
            yield Defect(
                service.ref,
                "spec.selector",
                f"no pod has {shown}",
                f"pods have {near}: is that meant?" if near else "let it select pods that exist",
            )


class _Pods:
    """The labels of pods, and of those that workloads are to make, by namespace."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._labels: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
        self._with: defaultdict[tuple[str, str, str], list[Mapping[str, str]]] = defaultdict(list)
        for pod in snapshot.of(PodManifest):
            self._add(pod.metadata.namespace, pod.metadata.labels)
        for workload in () if snapshot.live else snapshot.of(Workload):
            self._add(workload.metadata.namespace, workload.spec.template.metadata.labels)

    def _add(self, namespace: str, labels: Mapping[str, str]) -> None:
        self._labels[namespace].append(labels)
        for key, value in labels.items():
            self._with[namespace, key, value].append(labels)

    def of(self, namespace: str) -> list[Mapping[str, str]]:
        """Return the labels of each."""
        return self._labels[namespace]

    def have(self, namespace: str, selector: Mapping[str, str]) -> bool:
        """Return whether a selector, which is not empty, selects one of them."""
        some = [self._with.get((namespace, *item), []) for item in selector.items()]
        return any(selector.items() <= labels.items() for labels in min(some, key=len))


def _find_near_labels(selector: Mapping[str, str], pods: list[Mapping[str, str]]) -> str | None:
    """Return labels of pods that a selector may mean; None if its pods may be made elsewhere."""
    for labels in pods:
        found = {}
        for key, value in selector.items():
            near = key if key in labels else find_nearest(key, labels)
            if near is None:
                break
            if not _is_almost(labels[near], value):
                break
            found[near] = labels[near]
        else:
            return ", ".join(f"{key}={value}" for key, value in found.items())
    return None


def _is_almost(value: str, other: str) -> bool:
    """Return whether a value may be a slip for another: not one that only has another number."""
    if value == other:
        return True
    same_but_number = _NUMBER.sub("", value) == _NUMBER.sub("", other)
    return not same_but_number and find_nearest(value, [other]) is not None


def _find_unknown_ports(installation: Installation) -> Iterator[Defect]:
    snapshot = installation.snapshot
    for service in snapshot.of(Service):
        for index, port in enumerate(service.spec.ports):
            if not isinstance(port.target_port, str) or port.target_port.isdecimal():
                continue
            known = dict(_find_port_names(snapshot, service))
            if known and not any(port.target_port in names for names in known.values()):
                ref, names = next(iter(known.items()))
                shown = ", ".join(sorted(names)) or "none with a name"
                yield Defect(
                    service.ref,
                    f"spec.ports[{index}].targetPort",
                    f"no container of its pods has a port named {port.target_port}",
                    f"name one that {ref} declares ({shown}), or give the number",
                )


def _find_port_names(
    snapshot: Snapshot, service: Service
) -> Iterator[tuple[ObjectRef, frozenset[str]]]:
    """Yield the workloads whose pods a Service selects, with the names of their ports."""
    for workload in snapshot.of(Workload):
        template = workload.spec.template
        if service.selects(workload.metadata.namespace, template.metadata.labels):
            yield (
                workload.ref,
                frozenset(
                    port.name
                    for container in template.spec.containers
                    for port in container.ports
                    if port.name
                ),
            )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "selector-mismatch",
        Severity.ERROR,
        "The selector of a workload does not match the labels of its own pods.",
        "The API server refuses the workload: no pod is made.",
        _find_mismatches,
    ),
    Check(
        "service-without-pods",
        Severity.ERROR,
        "A Service selects no pod.",
        "Envoy has nowhere to send requests: they get a 503.",
        _find_lonely_services,
    ),
    Check(
        "target-port-unknown",
        Severity.ERROR,
        "A Service sends to a named port that its pods do not have.",
        "The Service has no endpoints on that port: requests get a 503.",
        _find_unknown_ports,
    ),
)
