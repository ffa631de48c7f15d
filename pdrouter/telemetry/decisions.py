"""The last decisions, with what they were made of, for people."""

from collections import deque
from datetime import UTC, datetime
from typing import Any

from pdrouter.extproc.record import RequestRecord
from pdrouter.routing.decision import Decision
from pdrouter.routing.explanation import describe_in_detail
from pdrouter.telemetry.attempts import describe_failed_attempts


class DecisionLog:
    """Keeps the last decisions as they were made; they are put into words when asked for."""

    def __init__(self, size: int) -> None:
        """Start empty.

        Args:
            size: how many decisions are kept.
        """
        self._entries: deque[tuple[datetime, RequestRecord, Decision]] = deque(maxlen=size)

    def note(self, record: RequestRecord) -> None:
        """Keep the decision of a request."""
        if record.decision is not None:
            self._entries.append((datetime.now(UTC), record, record.decision))

    def describe(self) -> list[dict[str, Any]]:
        """Return the decisions, the newest first."""
        return [
            {
                "time": time.isoformat(timespec="milliseconds"),
                "request_id": record.request_id,
                "model": record.model,
                **describe_in_detail(decision),
                "steps_ms": record.steps.describe(),
                "failed_attempts": describe_failed_attempts(record),
            }
            for time, record, decision in reversed(tuple(self._entries))
        ]
