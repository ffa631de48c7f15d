"""Versions of engines: whether prefill and decode pods of one version are there for each other."""

from collections import defaultdict
from collections.abc import Iterator

from pdrouter.cluster.kubernetes.objects import REVISIONS
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.revisions import Key, RevisionMatcher, find_unmatched
from pdrouter.settings import Settings
from pdrouter.tools.doctor.engines import Engine, read_running_pods
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.workloads import PodManifest


def _find_labels_apart(installation: Installation) -> Iterator[Defect]:
    if not _match_revisions(installation):
        return
    rolesets: defaultdict[tuple[str, ...], list[Engine]] = defaultdict(list)
    for engine in installation.engines:
        pod = engine.pod
        if pod is not None and engine.role is not None and engine.replicas > 0:
            rolesets[pod.namespace, pod.model, pod.roleset].append(engine)
    for members in rolesets.values():
        prefill, decode = (
            {each.pod.revision for each in members if each.pod and each.role is role}
            for role in (Role.PREFILL, Role.DECODE)
        )
        if prefill and decode and not prefill & decode:
            first = members[0]
            yield Defect(
                first.ref,
                f"{first.prefix}metadata.labels",
                f"prefill pods have {_name_all(prefill)}, decode pods {_name_all(decode)}",
                f"give both roles the same {REVISIONS[0]}, or set PDROUTER_MATCH_REVISIONS=false",
            )


def _name_all(revisions: set[str]) -> str:
    return ", ".join(
        f"revision {revision}" if revision else "no revision" for revision in sorted(revisions)
    )


def _find_unmatched(installation: Installation) -> Iterator[Defect]:
    if not _match_revisions(installation):
        return
    models: defaultdict[Key, list[Pod]] = defaultdict(list)
    for pod in read_running_pods(installation.snapshot):
        models[pod.namespace, pod.model].append(pod)
    matcher = RevisionMatcher()
    since = {
        (pod.metadata.namespace, pod.metadata.name): condition.since
        for pod in installation.snapshot.of(PodManifest)
        for condition in pod.status.conditions
        if condition.type == "Ready"
    }
    for key, pods in models.items():
        for pod in find_unmatched(matcher.match(key, pods, 0.0)):
            partner = Role.DECODE if pod.role is Role.PREFILL else Role.PREFILL
            revision = pod.pairing.revision
            what = f"of its revision {revision}" if revision else "without a revision, as it is,"
            yield Defect(
                ObjectRef("Pod", pod.namespace, pod.name),
                "metadata.labels" if pod.revision or not pod.image else "status.containerStatuses",
                f"no ready {partner} pod {what} is in its roleset; it has been ready since "
                f"{since.get((pod.namespace, pod.name)) or 'an unknown time'}",
                f"finish the update of both roles; if they fit together, give both the same label "
                f"{REVISIONS[0]}",
            )


def _match_revisions(installation: Installation) -> bool:
    settings = installation.routers[0].settings if installation.routers else Settings()
    return settings.match_revisions


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "revisions-apart",
        Severity.ERROR,
        "The prefill and the decode pods of a roleset have no revision label in common.",
        "Pairs are of one revision: requests are served whole by decode pods, or get a 503.",
        _find_labels_apart,
    ),
    Check(
        "pod-unmatched",
        Severity.WARNING,
        "A ready pod has no ready partner of its version (its revision label, or its image).",
        "It gets no two-leg request. While both roles are updated that passes; if it lasts, the "
        "rollout of one of them is stuck.",
        _find_unmatched,
    ),
)
