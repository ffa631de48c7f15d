"""The containers of a pod, and which of them is the engine's."""

from collections.abc import Sequence
from typing import Any

import msgspec

_NEURON = "aws.amazon.com/neuron"
"""Beginning of the names of its resources: whole devices, and cores of them."""


class ContainerPort(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a container declares."""

    container_port: int = 0


class EnvironmentVariable(msgspec.Struct, frozen=True):
    """A variable of a container; one that comes from elsewhere has no value here."""

    name: str
    value: str = ""


class Resources(msgspec.Struct, frozen=True):
    """What a container may use, by the names of resources."""

    limits: dict[str, Any] = {}


class Container(msgspec.Struct, frozen=True):
    """A container as a pod's `spec` tells it."""

    name: str
    ports: list[ContainerPort] = []
    env: list[EnvironmentVariable] = []
    resources: Resources = Resources()


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a pod."""

    containers: list[Container] = []
    node_name: str = ""
    node_selector: dict[str, str] = {}


class ContainerStatus(
    msgspec.Struct,
    frozen=True,
    rename={"id": "containerID", "restarts": "restartCount", "image_id": "imageID"},
):
    """What became of a container.

    Attributes:
        name: name of the container.
        id: identity of the container that runs, or was the last to run; each start has another.
        restarts: how often it was started again.
        image_id: the image that it runs, by its digest; empty before it was pulled.
    """

    name: str
    id: str = ""
    restarts: int = 0
    image_id: str = ""


def find_engine(
    containers: Sequence[Container],
    statuses: Sequence[ContainerStatus],
    port: int,
    *,
    main: str | None = None,
) -> ContainerStatus | None:
    """Return the engine's container: the one that declares its port, the main one, or the first.

    Args:
        containers: those of the pod.
        statuses: what became of them.
        port: port that the engine serves on.
        main: name of the container that is said to be the main one; None if none is.

    Returns:
        None if nothing is known of it.
    """
    declaring = (
        each.name for each in containers if any(p.container_port == port for p in each.ports)
    )
    name = next(declaring, main or (containers[0].name if containers else None))
    return next((status for status in statuses if name in (None, status.name)), None)


def has_neuron(containers: Sequence[Container]) -> bool:
    """Return whether any of these containers has devices of AWS Neuron."""
    names = (name for container in containers for name in container.resources.limits)
    return any(name.startswith(_NEURON) for name in names)


def identify_start(engine: ContainerStatus | None) -> str:
    """Return what tells a start of the engine from those before and after; nothing if unknown."""
    return "" if engine is None or not engine.id else f"{engine.restarts}/{engine.id}"


def identify_image(engine: ContainerStatus | None) -> str:
    """Return the digest of the image that an engine runs; nothing before it is known."""
    # The same image has several names, and may have been asked for by any of them.
    return "" if engine is None else engine.image_id.rpartition("@")[2].rpartition("//")[2]
