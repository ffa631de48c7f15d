"""Labels and annotations of pods that were meant for the router, but are not what it reads."""

from collections.abc import Iterator, Mapping
from functools import lru_cache

from pdrouter.cluster.kubernetes.objects import (
    BOOTSTRAP_PORT,
    CONFIG,
    ENGINE,
    GROUP_INDEX,
    KV_CONNECTOR,
    METRICS_PORT,
    MODEL,
    NO_BOOTSTRAP_PORT,
    PORT,
    REVISIONS,
    ROLE,
    ROLESET,
    read_bootstrap_port,
)
from pdrouter.cluster.kubernetes.ranks import RANK_PORTS, RANKS
from pdrouter.cluster.pods import UNSAID_PORT, Role
from pdrouter.engines.registry import WIRES
from pdrouter.nearest import find_nearest
from pdrouter.tools.doctor.engines import find_pods
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.workloads import Workload

_READ = (
    *(MODEL, PORT, METRICS_PORT, ENGINE, CONFIG, KV_CONNECTOR, BOOTSTRAP_PORT, ROLE, ROLESET),
    GROUP_INDEX,
    *REVISIONS,
    *(RANK_PORTS, RANKS),
)
"""What the router reads of a pod."""

_OTHERS = (
    "model.aibrix.ai/kv-events-enabled",
    "model.aibrix.ai/lora-id",
    "model.aibrix.ai/model-router-custom-paths",
    "model.aibrix.ai/service-name",
    "stormservice.orchestration.aibrix.ai/role-replica-index",
)
"""What aibrix reads of a pod beside that."""

_ROLES = (Role.PREFILL, Role.DECODE, "encode")
_LABELS_ONLY = (ROLE, ROLESET, GROUP_INDEX, *REVISIONS)


def _find_misspelt_keys(installation: Installation) -> Iterator[Defect]:
    for ref, prefix, metadata, _, _ in find_pods(installation.snapshot):
        present = metadata.labels.keys() | metadata.annotations.keys()
        for place, entries in (
            ("labels", metadata.labels),
            ("annotations", metadata.annotations),
        ):
            for key in entries:
                near = _find_key(key)
                # `role-name` beside a label almost of that name: the other is somebody else's.
                if near in _READ and near not in present:
                    yield Defect(
                        ref,
                        f"{prefix}metadata.{place}[{key}]",
                        f"the router does not read {key}",
                        f"did you mean {near}?",
                    )


@lru_cache(maxsize=4096)
def _find_key(key: str) -> str | None:
    """Return the key that is most like one; thousands of pods have the same few."""
    return find_nearest(key, (*_READ, *_OTHERS))


def _find_misspelt_roles(installation: Installation) -> Iterator[Defect]:
    for ref, prefix, metadata, _, _ in find_pods(installation.snapshot):
        role = metadata.labels.get(ROLE, "")
        near = find_nearest(role, _ROLES)
        if near is not None and role != near:
            yield Defect(
                ref,
                f"{prefix}metadata.labels[{ROLE}]",
                f"no role is called {role!r}",
                f"did you mean {near}?",
            )


def _find_misspelt_engines(installation: Installation) -> Iterator[Defect]:
    """Of pods with one leg, an unknown engine is refused, whatever it is like."""
    for ref, prefix, metadata, _, _ in find_pods(installation.snapshot):
        engine = metadata.get(ENGINE) or ""
        near = find_nearest(engine, tuple(WIRES))
        if near is not None and engine.lower() != near and metadata.labels.get(ROLE) not in _ROLES:
            yield Defect(
                ref,
                f"{prefix}metadata",
                f"no engine is called {engine!r}",
                f"did you mean {near} in {ENGINE}?",
            )


def _find_misplaced(installation: Installation) -> Iterator[Defect]:
    for ref, prefix, metadata, _, _ in find_pods(installation.snapshot):
        for key in _LABELS_ONLY:
            if key in metadata.annotations and key not in metadata.labels:
                yield Defect(
                    ref,
                    f"{prefix}metadata.annotations[{key}]",
                    f"{key} is an annotation; the router reads the label",
                    f"move it to {prefix}metadata.labels",
                )
    for workload in installation.snapshot.of(Workload):
        template = workload.spec.template.metadata
        own = workload.metadata
        if _names_engine(template.labels, template.annotations):
            continue
        if ROLE in own.labels and _names_engine(own.labels, own.annotations):
            yield Defect(
                workload.ref,
                "metadata.labels",
                f"the {workload.kind} has {ROLE} and {MODEL}, its pods do not",
                "write them into spec.template.metadata.labels",
            )


def _find_invalid_bootstrap_ports(installation: Installation) -> Iterator[Defect]:
    for ref, prefix, metadata, _, _ in find_pods(installation.snapshot):
        text, port = metadata.get(BOOTSTRAP_PORT), read_bootstrap_port(metadata)
        said = port != UNSAID_PORT and text in (NO_BOOTSTRAP_PORT, str(port))
        if text is None or said:
            continue
        place = "labels" if BOOTSTRAP_PORT in metadata.labels else "annotations"
        yield Defect(
            ref,
            f"{prefix}metadata.{place}[{BOOTSTRAP_PORT}]",
            f"{text!r:.100} is no port, so that the usual one counts (8998; of P2P tiers, 7777)",
            "write the number that --disaggregation-bootstrap-port has, or the port of the P2P "
            "tier; or null",
        )


def _names_engine(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    return MODEL in labels or MODEL in annotations


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "label-misspelt",
        Severity.ERROR,
        "A pod has a label or annotation whose name is almost one that the router reads.",
        "The router does not see it: the pod is not found, or is taken for another kind of pod.",
        _find_misspelt_keys,
    ),
    Check(
        "role-misspelt",
        Severity.ERROR,
        "A pod's role is almost prefill or decode.",
        "The router takes it for a part that serves no requests: it forms no pairs, and gets none "
        "beside pods that do.",
        _find_misspelt_roles,
    ),
    Check(
        "engine-misspelt",
        Severity.WARNING,
        "A pod's engine is almost one that the router knows.",
        "It gets whole requests, but its metrics are read as vLLM's, which they may not be.",
        _find_misspelt_engines,
    ),
    Check(
        "bootstrap-port-invalid",
        Severity.WARNING,
        "The bootstrap port of an SGLang, Mooncake or P2P pod is no port.",
        "Decode engines look for it at the default, and fail if it is elsewhere.",
        _find_invalid_bootstrap_ports,
    ),
    Check(
        "label-misplaced",
        Severity.ERROR,
        "A label that the router reads of pods is an annotation, or stands on their workload.",
        "The router does not see it: the pod is not found, or is taken for another kind of pod.",
        _find_misplaced,
    ),
)
