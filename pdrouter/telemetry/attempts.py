"""The tries of side legs, in words."""

from typing import Any

from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.statuses import Speaks

_DONE = Speaks.DONE


def describe_failed_attempts(record: RequestRecord) -> list[dict[str, Any]]:
    """Return the tries of a request that gave nothing: which pod, where it is, and why."""
    return [_describe(attempt) for attempt in record.attempts if attempt.speaks is not _DONE]


def _describe(attempt: Attempt) -> dict[str, Any]:
    return {
        "leg": attempt.leg,
        "pod": attempt.pod.name,
        "address": attempt.pod.address,
        "request_id": attempt.request_id,
        "status": attempt.status,
        "failure": attempt.failure,
        "message": attempt.message,
        "ms": round(attempt.seconds * 1000, 3),
    }
