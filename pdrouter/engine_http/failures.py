"""What may go wrong between the router and an engine."""

from enum import StrEnum


class FailureKind(StrEnum):
    """What went wrong between the router and an engine."""

    CONNECT = "connect"
    TRANSPORT = "transport"
    TIMEOUT = "timeout"
    STATUS = "status"
    TOO_LARGE = "too-large"


class PostFailed(Exception):
    """There is no HTTP answer.

    Attributes:
        kind: what went wrong.
        stale: whether the connection had been used before and was closed without an answer: the
            engine had most likely closed it while it was idle.
    """

    def __init__(self, kind: FailureKind, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.stale = stale
