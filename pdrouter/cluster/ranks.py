"""Data-parallel ranks: one pod that is several endpoints.

A rank has requests, a queue, KV blocks and failures of its own. So each is a pod to the router,
with a UID and a name of its own. Where each has its own port, nothing else tells them apart. Where
all are behind one port, a header says which one is meant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdrouter.cluster.pods import RANK_MARK, Pod, Rank, format_address

MOST_RANKS = 256
_NUMBER = re.compile("[1-9][0-9]{0,4}")


class RanksInvalid(ValueError):
    """What is said of ranks cannot be."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of a pod.

    Attributes:
        ports: the port of each, where each has its own.
        size: how many there are behind one port.
    """

    ports: tuple[int, ...] = ()
    size: int = 1

    def split(self, pod: Pod) -> tuple[Pod, ...]:
        """Return the pod as one pod for each rank; as it is where there is one."""
        if len(self.ports) > 1:
            return tuple(_move(pod, number, port) for number, port in enumerate(self.ports))
        if self.size > 1:
            return tuple(
                replace(_name(pod, number), rank=Rank(number, self.size))
                for number in range(self.size)
            )
        return (pod,)


ONE_RANK = Ranks()


def _name(pod: Pod, number: int) -> Pod:
    mark = f"{RANK_MARK}{number}"
    return replace(pod, uid=f"{pod.uid}{mark}", name=f"{pod.name}{mark}")


def _move(pod: Pod, number: int, port: int) -> Pod:
    return replace(
        _name(pod, number),
        port=port,
        metrics_port=port,
        address=format_address(pod.ip, port),
    )


def parse_ports(text: str) -> tuple[int, ...]:
    """Return the ports of `8000,8001` or `8000-8003`.

    Raises:
        RanksInvalid: the text is none of that.
    """
    first, dash, last = text.partition("-")
    numbers = _read_numbers((first, last) if dash else text.split(","))
    if dash and numbers is not None:
        # No more than are refused, however far it goes.
        numbers = list(range(numbers[0], min(numbers[1], numbers[0] + MOST_RANKS) + 1))
    if not numbers or max(numbers) > 65535 or len(set(numbers)) < len(numbers):
        raise RanksInvalid(f"ports {text!r:.100} must be like 8000,8001 or 8000-8003")
    if len(numbers) > MOST_RANKS:
        raise RanksInvalid(f"ports {text!r:.100} are more than {MOST_RANKS}")
    return tuple(numbers)


def parse_size(text: str) -> int:
    """Return how many ranks there are.

    Raises:
        RanksInvalid: the text is no number from 1 to `MOST_RANKS`.
    """
    numbers = _read_numbers((text,))
    if numbers is None or numbers[0] > MOST_RANKS:
        message = f"data-parallel size {text!r:.100} must be a number from 1 to {MOST_RANKS}"
        raise RanksInvalid(message)
    return numbers[0]


def _read_numbers(texts: Sequence[str]) -> list[int] | None:
    stripped = [text.strip() for text in texts]
    if not all(map(_NUMBER.fullmatch, stripped)):
        return None
    return [int(text) for text in stripped]
