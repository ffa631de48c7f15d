"""The last decisions, with what they were made of and what came of them, for people."""

import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

from pdrouter.routing.explanation import describe_in_detail
from pdrouter.serving.record import RequestRecord
from pdrouter.telemetry.attempts import describe_failed_attempts
from pdrouter.telemetry.descriptions import describe_deadline, describe_result


class DecisionLog:
    """Keeps the last requests that pods were chosen for.

    What they are told of is put into words when asked for: the pods that serve them now, or have,
    where others were chosen first.
    """

    def __init__(self, size: int) -> None:
        """Start empty.

        Args:
            size: how many decisions are kept.
        """
        self._size = size
        self._entries: OrderedDict[str, tuple[float, RequestRecord]] = OrderedDict()

    def note(self, record: RequestRecord) -> None:
        """Keep the decision of a request."""
        if record.decision is None or not self._size:
            return
        self._entries[record.request_id] = (time.time(), record)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def find(self, request_id: str) -> RequestRecord | None:
        """Return the record of a request whose decision is kept."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry[1]

    def describe(self, wanted: str = "") -> list[dict[str, Any]]:
        """Return the decisions, the newest first.

        Args:
            wanted: the router's or the client's id of the request that is asked for; empty for all.
        """
        return [
            {
                "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
                "request_id": record.request_id,
                "client_request_id": record.client_request_id,
                "model": record.model,
                **_describe_decision(record),
                "deadline": None
                if record.deadline is None
                else describe_deadline(record.deadline, record),
                "failed_attempts": describe_failed_attempts(record),
                "retries": record.retries,
                "result": describe_result(record),
                "steps_ms": record.steps.describe(),
            }
            for at, record in reversed(tuple(self._entries.values()))
            if not wanted or wanted in _list_ids(record)
        ]


def _describe_decision(record: RequestRecord) -> dict[str, Any]:
    return {} if record.decision is None else describe_in_detail(record.decision)


def _list_ids(record: RequestRecord) -> set[str]:
    """Return all ids of a request: each further attempt of its prefill leg has one of its own."""
    attempts = {attempt.request_id for attempt in record.attempts}
    return {record.request_id, record.client_request_id, *attempts}
