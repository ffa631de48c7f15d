"""Log lines as JSON objects, written by a thread of their own."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any

import msgspec

MAX_WAITING_LINES = 10_000
"""Lines that wait to be written; further ones are dropped, so that memory does not run out."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _QueueOfLines(QueueHandler):
    """Hands records over to the thread that writes them; never waits, never raises.

    Attributes:
        dropped: records that were not handed over, because too many were waiting.
    """

    def __init__(self, records: SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0
        self._records = records

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record unchanged; both sides are threads of one process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hand a record over, or drop it."""
        # A queue with a limit of its own would also refuse the sign that the thread is to end.
        if self._records.qsize() < MAX_WAITING_LINES:
            self._records.put(record)
        else:
            self.dropped += 1


def count_dropped_lines() -> int:
    """Return how many lines were dropped since logging to standard output began."""
    handlers = logging.getLogger().handlers
    return sum(each.dropped for each in handlers if isinstance(each, _QueueOfLines))


@contextmanager
def log_to_stdout(level: str) -> Iterator[None]:
    """Send log records of this level and above to standard output while the context lasts.

    A reader that stalls holds up the writing thread, never the event loop; what the thread cannot
    keep up with is dropped and counted.
    """
    writer = logging.StreamHandler(sys.stdout)
    writer.setFormatter(JsonFormatter())
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    listener = QueueListener(records, writer)
    handler = _QueueOfLines(records)
    root = logging.getLogger()
    former_level = root.level
    root.setLevel(level.upper())
    root.addHandler(handler)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(former_level)
        listener.stop()
