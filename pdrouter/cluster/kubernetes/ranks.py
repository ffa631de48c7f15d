"""What a pod says of its data-parallel ranks."""

from collections.abc import Callable, Sequence

from pdrouter.cluster.kubernetes.containers import Container
from pdrouter.cluster.ranks import ONE_RANK, Ranks, RanksInvalid, parse_ports, parse_size

RANK_PORTS = "pdrouter/data-parallel-ports"
"""The ports of the ranks, where each has its own."""
RANKS = "pdrouter/data-parallel-size"
"""How many ranks there are behind the pod's port."""
AIBRIX_RANKS = "data-parallel-size"
"""Variable of a container: so many ranks have the ports from the pod's on."""


def read_ranks(
    get: Callable[[str], str | None], containers: Sequence[Container], port: int
) -> Ranks:
    """Return the ranks of a pod.

    Args:
        get: gives a label or an annotation.
        containers: those of the pod.
        port: its port.

    Raises:
        RanksInvalid: it says something that cannot be.
    """
    ports, size = get(RANK_PORTS), get(RANKS)
    if ports is not None and size is not None:
        raise RanksInvalid(f"ranks have ports of their own ({RANK_PORTS}) or not ({RANKS})")
    if ports is not None:
        return Ranks(parse_ports(ports))
    if size is not None:
        return Ranks(size=parse_size(size))
    for container in containers:
        for variable in container.env:
            if variable.name == AIBRIX_RANKS and variable.value:
                return Ranks(parse_ports(f"{port}-{port + parse_size(variable.value) - 1}"))
    return ONE_RANK


def find_ranks(
    get: Callable[[str], str | None], containers: Sequence[Container], port: int
) -> Ranks:
    """Return the ranks of a pod; one where it says something that cannot be."""
    try:
        return read_ranks(get, containers, port)
    except RanksInvalid:
        return ONE_RANK


def find_rank_flaw(
    get: Callable[[str], str | None], containers: Sequence[Container], port: int
) -> str:
    """Return what is wrong with what a pod says of its ranks; nothing if nothing is."""
    try:
        read_ranks(get, containers, port)
    except RanksInvalid as invalid:
        return str(invalid)
    return ""
