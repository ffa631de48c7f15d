"""Log lines as JSON objects, written by a thread of their own."""

import io
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import SimpleQueue
from select import PIPE_BUF
from threading import Event, Thread
from typing import Any, TextIO, TypeAlias

import msgspec

MAX_WAITING_LINES = 10_000
"""Lines that wait to be written; further ones are dropped, so that memory does not run out."""

_GATHER_S = 0.05
"""Time in which further lines may join a line that waits, to be written with it."""

_Records: TypeAlias = SimpleQueue[logging.LogRecord | None]
"""Records to write; None is the end."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and the record's `fields`."""

    def __init__(self, **constants: object) -> None:
        """Set up the formatter.

        Args:
            constants: further members that every line has.
        """
        super().__init__()
        self._constants = constants

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **self._constants,
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

    def __init__(self, records: _Records) -> None:
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
def log_to_stdout(level: str, **constants: object) -> Iterator[None]:
    """Send log records of this level and above to standard output while the context lasts.

    Each line also says what the other arguments are.

    A reader that stalls holds up the writing thread, never the event loop; what the thread cannot
    keep up with is dropped and counted.
    """
    # What no line shows need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    records: _Records = SimpleQueue()
    ended = Event()
    formatter = JsonFormatter(**constants)
    writer = Thread(
        target=_write_lines, args=(records, sys.stdout, formatter, ended), name="log", daemon=True
    )
    handler = _QueueOfLines(records)
    root = logging.getLogger()
    former_level = root.level
    root.setLevel(level.upper())
    root.addHandler(handler)
    writer.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(former_level)
        ended.set()
        records.put(None)
        writer.join()


def _write_lines(
    records: _Records, stream: TextIO, formatter: logging.Formatter, ended: Event
) -> None:
    """Write lines until the end is found among the records."""
    running = True
    while running:
        batch = [records.get()]
        # To wake this thread for each line would cost the event loop more than the line does: they
        # fight for Python's lock.
        ended.wait(_GATHER_S)
        while not records.empty():
            batch.append(records.get())
        running = None not in batch
        lines = io.StringIO()
        handler = logging.StreamHandler(lines)
        handler.setFormatter(formatter)
        for record in filter(None, batch):
            handler.emit(record)
        lines.seek(0)
        try:
            for text in join_lines(lines):
                stream.write(text)
                stream.flush()
        except OSError as error:
            sys.stderr.write(f"pdrouter: {len(batch)} log lines are lost: {error}\n")


def join_lines(lines: Iterable[str]) -> Iterator[str]:
    """Join lines to texts that a pipe takes whole, where a line alone is not longer.

    Workers share their standard output, and the system mixes what several processes write to a pipe
    at once if it is longer than PIPE_BUF (POSIX, write).
    """
    joined, size = "", 0
    for line in lines:
        length = len(line.encode())
        if joined and size + length > PIPE_BUF:
            yield joined
            joined, size = "", 0
        joined += line
        size += length
    if joined:
        yield joined
