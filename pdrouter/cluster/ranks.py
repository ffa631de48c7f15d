"""Data-parallel ranks: one pod that is several endpoints.

A rank has requests, a queue, KV blocks and failures of its own. So each is a pod to the router,
with a UID and a name of its own. Where each has its own port, nothing else tells them apart. Where
all are behind one port, a header says which one is meant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

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
        """Return the pod as one pod for each rank; one rank has its name, and perhaps its port."""
        if len(self.ports) > 1:
            return tuple(_move(_name(pod, number), port) for number, port in enumerate(self.ports))
        if self.size > 1:
            return tuple(
                replace(_name(pod, number), rank=Rank(number, self.size))
                for number in range(self.size)
            )
        if self.ports and self.ports[0] != pod.port:
            return (_move(pod, self.ports[0]),)
        return (pod,)


ONE_RANK = Ranks()


def _name(pod: Pod, number: int) -> Pod:
    mark = f"{RANK_MARK}{number}"
    return replace(pod, uid=f"{pod.uid}{mark}", name=f"{pod.name}{mark}", index=number)


def _move(pod: Pod, port: int) -> Pod:
    return replace(pod, port=port, metrics_port=port, address=format_address(pod.ip, port))


def parse_ports(text: str) -> tuple[int, ...]:
    """Return the ports of `8000,8001` or `8000-8003`, or of the `targetPorts` of an InferencePool.

    Raises:
        RanksInvalid: the text is none of that.
    """
    listed = text.lstrip().startswith("[")
    numbers = _read_target_ports(text) if listed else _read_ports(text)
    if numbers is None:
        example = '[{"number": 8000}]' if listed else "8000,8001 or 8000-8003"
        raise RanksInvalid(f"ports {text!r:.100} must be like {example}")
    try:
        return check_ports(numbers)
    except RanksInvalid as invalid:
        raise RanksInvalid(f"ports {text!r:.100}: {invalid}") from None


def check_ports(numbers: Sequence[int]) -> tuple[int, ...]:
    """Return the ports of the ranks of one pod.

    Raises:
        RanksInvalid: they are none, too many or not ports, or one is there twice.
    """
    if not numbers or min(numbers) < 1 or max(numbers) > 65535:
        raise RanksInvalid("there must be some, from 1 to 65535")
    if len(numbers) > MOST_RANKS:
        raise RanksInvalid(f"there are more than {MOST_RANKS}")
    if len(set(numbers)) < len(numbers):
        raise RanksInvalid("one is there twice")
    return tuple(numbers)


def _read_ports(text: str) -> Sequence[int] | None:
    first, dash, last = text.partition("-")
    numbers = _read_numbers((first, last) if dash else text.split(","))
    if not dash or numbers is None:
        return numbers
    # No more than are refused, however far it goes.
    return range(numbers[0], min(numbers[1], numbers[0] + MOST_RANKS) + 1)


class _TargetPort(msgspec.Struct, forbid_unknown_fields=True):
    number: int


def _read_target_ports(text: str) -> Sequence[int] | None:
    try:
        listed = msgspec.json.decode(text, type=list[_TargetPort])
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return None
    return [port.number for port in listed]


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
