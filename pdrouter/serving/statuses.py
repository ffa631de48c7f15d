"""What the status of a prefill engine's answer speaks of: the request, or the pod."""

from enum import StrEnum

_REQUEST_TIMEOUT = 408
_TOO_MANY_REQUESTS = 429

# In the order in which a request gets past them: credentials, then the model, then the queue.
_OF_POD = (401, 403, 407, 404, 405, 421, 425, _REQUEST_TIMEOUT, _TOO_MANY_REQUESTS)
"""Statuses by which a pod says what it is, has or can now, not what the request is like."""

BUSY = frozenset({425, _REQUEST_TIMEOUT, _TOO_MANY_REQUESTS})
"""Of these, those of a pod that could serve the request at another time."""


DONE = range(200, 300)
"""Statuses of an engine that has carried a leg out."""


class Speaks(StrEnum):
    """What a status speaks of."""

    DONE = "done"
    """The leg is carried out."""
    REQUEST = "request"
    """The request: any pod would say the same."""
    POD = "pod"
    """The pod: another one may have the key, the adapter or the time."""
    FAILURE = "failure"
    """The pod, which has failed."""


# Looked up once: most answers are like that.
_SPEAKS_DONE = Speaks.DONE


def judge(status: int) -> Speaks:
    if status in DONE:
        return _SPEAKS_DONE
    if status in _OF_POD:
        return Speaks.POD
    return Speaks.REQUEST if 400 <= status < 500 else Speaks.FAILURE


def rank(status: int) -> int:
    """Return how telling a status is that speaks of a pod: the further the request got, the more.

    Where one pod does not have the adapter and another is busy, there is the adapter.
    """
    return _OF_POD.index(status)
