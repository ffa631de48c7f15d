"""The last decisions, with what they were made of, for people."""

from collections import deque
from datetime import UTC, datetime
from typing import Any

from pdrouter.extproc.record import RequestRecord
from pdrouter.routing.decision import Decision
from pdrouter.routing.explanation import describe_in_detail


class DecisionLog:
    """Keeps the last decisions as they were made; they are put into words when asked for."""

    def __init__(self, size: int) -> None:
        """Start empty.

        Args:
            size: how many decisions are kept.
        """
        self._entries: deque[tuple[datetime, str, str, Decision]] = deque(maxlen=size)

    def note(self, record: RequestRecord) -> None:
        """Keep the decision of a request."""
        if record.decision is not None:
            now = datetime.now(UTC)
            self._entries.append((now, record.request_id, record.model, record.decision))

    def describe(self) -> list[dict[str, Any]]:
        """Return the decisions, the newest first."""
        return [
            {
                "time": time.isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "model": model,
                **describe_in_detail(decision),
            }
            for time, request_id, model, decision in reversed(tuple(self._entries))
        ]
