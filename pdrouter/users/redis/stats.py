"""What has become of calls to Redis. Loads nothing of its client."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a call has failed."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    AUTH = "auth"
    FULL = "full"
    READ_ONLY = "read_only"
    OTHER = "other"
    AWAY = "away"
    """It was not tried: those before have failed."""


@dataclass(slots=True)
class LinkStats:
    """What has become of the calls.

    Attributes:
        up: whether the server is thought to answer.
        calls: calls that were answered.
        failures: those that were not, by reason.
        dropped: corrections that were given up.
    """

    up: bool = False
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
