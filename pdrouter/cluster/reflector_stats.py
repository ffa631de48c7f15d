"""What a reflector has met, for metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ReflectorStats:
    """What a reflector has met.

    Attributes:
        synced: whether a list has been complete once.
        contact: time of the last byte from the API server, on the monotonic clock; None before.
        lists: complete lists.
        watches: watches that were begun.
        events: events by type.
        restarts: watches and lists that ended, by cause.
    """

    synced: bool = False
    contact: float | None = None
    lists: int = 0
    watches: int = 0
    events: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
