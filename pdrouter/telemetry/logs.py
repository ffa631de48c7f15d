"""Log lines as JSON objects, written by a thread of their own."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from queue import SimpleQueue
from select import PIPE_BUF
from threading import Event, Thread
from typing import Any, TextIO, TypeAlias

import msgspec

MAX_WAITING_LINES = 10_000
"""Lines that wait to be written; further ones are dropped, so that memory does not run out."""

_GATHER_S = 0.1
"""Time in which further lines may join a line that waits, to be written with it."""

Fields: TypeAlias = Mapping[str, Any]
"""What a line says, by name."""

_Lines: TypeAlias = SimpleQueue[str | None]
"""Lines to write; None is the end."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, and the record's `fields`.

    A record of several lines has the fields of each as its `lines`, and their `times`.
    """

    def __init__(self, **constants: object) -> None:
        """Set up the formatter.

        Args:
            constants: further members that every line has.
        """
        super().__init__()
        self._constants = constants

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines."""
        return "\n".join(self.format_lines(record))

    def format_lines(self, record: logging.LogRecord) -> list[str]:
        """Return the lines."""
        head: dict[str, Any] = {
            "time": "",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **self._constants,
        }
        end = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        times: Sequence[float] = getattr(record, "times", (record.created,))
        lines = []
        for at, fields in zip(times, list_fields(record), strict=True):
            head["time"] = _format_time(at)
            lines.append(_encode({**head, **fields, **end}))
        return lines


def _format_time(at: float) -> str:
    """Return a time as ISO 8601 has it, in milliseconds; what is beyond them is cut off."""
    second = int(at)
    microseconds = round((at - second) * 1e6)
    if microseconds == 1_000_000:
        second, microseconds = second + 1, 0
    return f"{_format_second(second)}.{str(microseconds // 1000).zfill(3)}+00:00"


# Most lines are of the second of the one before: to format all of it takes as long as the line.
@lru_cache(maxsize=8)
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _encode(line: Mapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except (ArithmeticError, TypeError, ValueError):
        # A number or a text that is none, or something else: it may not cost the other lines.
        return json.dumps(line, default=str)


class _QueueOfLines(logging.Handler):
    """Hands lines over to the thread that writes them; never waits, never raises.

    Attributes:
        dropped: lines that were not handed over, because too many were waiting.
    """

    def __init__(self, lines: _Lines, formatter: JsonFormatter) -> None:
        super().__init__()
        self.dropped = 0
        self._lines = lines
        self._formatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record's lines over, or drop them."""
        try:
            # The thread would need Python's lock for so long that the event loop waits for it.
            lines = self._formatter.format_lines(record)
        except Exception:  # noqa: BLE001 - as all handlers do
            self.handleError(record)
            return
        for line in lines:
            # A queue with a limit of its own would also refuse the sign that the thread is to end.
            if self._lines.qsize() < MAX_WAITING_LINES:
                self._lines.put(f"{line}\n")
            else:
                self.dropped += 1


def list_fields(record: logging.LogRecord) -> Sequence[Fields]:
    """Return the fields of each line of a record."""
    lines: Sequence[Fields] | None = getattr(record, "lines", None)
    return (getattr(record, "fields", {}),) if lines is None else lines


def write_lines(
    log: logging.Logger,
    level: int,
    event: str,
    lines: Sequence[Fields],
    times: Sequence[float],
) -> None:
    """Write lines of the same level and event, as one record of the log.

    Args:
        log: the logger.
        level: the level.
        event: what has happened.
        lines: the fields of each line.
        times: when that was, in seconds since the epoch.
    """
    extra = {"lines": lines, "times": times}
    # To look for the caller would take as long as all the rest of a line.
    log.handle(log.makeRecord(log.name, level, "", 0, event, (), None, extra=extra))


def count_dropped_lines() -> int:
    """Return how many lines were dropped since logging to standard output began."""
    handlers = logging.getLogger().handlers
    return sum(each.dropped for each in handlers if isinstance(each, _QueueOfLines))


@contextmanager
def log_to_stdout(level: str, *, shared: bool = False, **constants: object) -> Iterator[None]:
    """Send log records of this level and above to standard output while the context lasts.

    A reader that stalls holds up the writing thread, never the event loop; what the thread cannot
    keep up with is dropped and counted.

    Args:
        level: the lowest level that is written.
        shared: other processes write to the same standard output.
        constants: further members that every line has.
    """
    # What no line shows need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    lines: _Lines = SimpleQueue()
    ended = Event()
    given = (lines, sys.stdout, ended, shared)
    writer = Thread(target=_write_lines, args=given, name="log", daemon=True)
    handler = _QueueOfLines(lines, JsonFormatter(**constants))
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
        lines.put(None)
        writer.join()


def _write_lines(lines: _Lines, stream: TextIO, ended: Event, shared: bool) -> None:
    """Write lines until the end is found among them."""
    running = True
    while running:
        batch = [lines.get()]
        # To wake this thread for each line would cost the event loop more than the line does: they
        # fight for Python's lock.
        ended.wait(_GATHER_S)
        while not lines.empty():
            batch.append(lines.get())
        running = None not in batch
        found = filter(None, batch)
        # Each write lets go of Python's lock, and has to wait for it again.
        texts = join_lines(found) if shared else ("".join(found),)
        try:
            for text in texts:
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
