"""Log lines as JSON objects, written by a thread of their own."""

import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any

import msgspec


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


class _DirectQueueHandler(QueueHandler):
    """Hands records over as they are: both sides are threads of one process."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record unchanged; the listener formats it."""
        return record


@contextmanager
def log_to_stdout(level: str) -> Iterator[None]:
    """Send log records of this level and above to standard output while the context lasts.

    A reader that stalls holds up the writing thread, never the event loop.
    """
    writer = logging.StreamHandler(sys.stdout)
    writer.setFormatter(JsonFormatter())
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, writer)
    handler = _DirectQueueHandler(records)
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
