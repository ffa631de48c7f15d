"""Checks of the pods that encode media for others."""

from collections.abc import Iterator

from pdrouter.cluster.kubernetes.objects import ROLE
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.settings.choices import ENCODE_ENGINES
from pdrouter.tools.doctor.engines import Engine
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation

_EMBEDS = "--enable-mm-embeds"
_SERVES = "vllm"


def _find_idle(installation: Installation) -> Iterator[Defect]:
    for engine, pod in _list_encoders(installation):
        if pod.obstacle:
            continue
        where = f"{engine.prefix}metadata.labels[{ROLE}]"
        if pod.engine not in ENCODE_ENGINES:
            yield Defect(
                engine.ref,
                where,
                f"its engine is {pod.engine}, for which nothing is encoded elsewhere by the router",
                "give it no role, or the engine vllm",
            )
        elif not _find_takers(installation, pod):
            yield Defect(
                engine.ref,
                where,
                "no pod of its namespace, model, roleset, engine and revision computes prompts",
                "give both the same labels, and the same revision or none",
            )


def _find_without_embeds(installation: Installation) -> Iterator[Defect]:
    models = {(pod.namespace, pod.model) for _, pod in _list_encoders(installation)}
    for engine in installation.engines:
        pod = engine.pod
        if pod is None or pod.role is Role.ENCODE or (pod.namespace, pod.model) not in models:
            continue
        for container in engine.spec.containers:
            words = [*container.command, *container.args]
            # What starts the engine elsewhere, such as an entry point of the image, is not seen.
            if any(_SERVES in word for word in words) and not any(
                _EMBEDS in word for word in words
            ):
                yield Defect(
                    engine.ref,
                    f"{engine.prefix}spec.containers[{container.name}].args",
                    f"it lacks {_EMBEDS}, and pods encode media for its model",
                    f"add {_EMBEDS}",
                )


def _list_encoders(installation: Installation) -> Iterator[tuple[Engine, Pod]]:
    for engine in installation.engines:
        if engine.pod is not None and engine.pod.role is Role.ENCODE and engine.replicas > 0:
            yield engine, engine.pod


def _find_takers(installation: Installation, encoder: Pod) -> list[Pod]:
    """Return the pods for which one encodes, were all ready."""
    pods = [encoder] + [
        engine.pod
        for engine in installation.engines
        if engine.pod is not None
        and engine.pod.role is not Role.ENCODE
        and engine.replicas > 0
        and (engine.pod.namespace, engine.pod.model) == (encoder.namespace, encoder.model)
    ]
    model = ModelPods.group(encoder.model, pods)
    return [pod for pod in pods if model.find_encoders(pod)]


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "encoder-idle",
        Severity.ERROR,
        "A pod is there to encode media, and there is none for which it could.",
        "It gets no requests; media are encoded where prompts are computed, as without it.",
        _find_idle,
    ),
    Check(
        "mm-embeds-missing",
        Severity.ERROR,
        "Pods encode media for a model, and an engine of it takes nothing that stands for them.",
        "It refuses every chat with media that it gets: clients get its 400.",
        _find_without_embeds,
    ),
)
