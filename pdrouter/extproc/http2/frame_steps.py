"""Tables of what is done with a frame, by its type."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from pdrouter.extproc.http2.frames import ConnectionFault, ErrorCode, Frame

T = TypeVar("T")

Step: TypeAlias = Callable[[T, Frame], None]
"""What a connection does with a frame."""

_TYPES = 256


def tabulate(steps: Mapping[int, Step[T]], other: Step[T]) -> Sequence[Step[T]]:
    """Return the steps for all types of frames that there can be.

    Args:
        steps: what is done with frames of some types.
        other: what is done with all others.
    """
    return tuple(steps.get(kind, other) for kind in range(_TYPES))


def refuse(reason: str) -> Step[object]:
    """Return what ends the connection of a peer that sends such a frame."""

    def refuse_frame(connection: object, frame: Frame) -> None:
        del connection, frame
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, reason)

    return refuse_frame
