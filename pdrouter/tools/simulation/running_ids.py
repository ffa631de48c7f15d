"""The ids of the requests that an engine runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.refusal import Refused


class RunningIds:
    """Holds every id to one request at a time."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._ids: set[str] = set()

    @contextmanager
    def claim(self, request_id: str) -> Iterator[None]:
        """Have an id for as long as the block runs.

        Raises:
            Refused: Another request has it.
        """
        if request_id in self._ids:
            self._metrics.duplicate_request_ids.inc()
            raise Refused(400, f"Request id {request_id} already running.")
        self._ids.add(request_id)
        try:
            yield
        finally:
            self._ids.remove(request_id)
