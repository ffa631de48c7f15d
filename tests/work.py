"""Counts what a piece of work costs, in steps of the interpreter and in memory: never in time."""

import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pdrouter

_ROUTER = str(Path(pdrouter.__file__).parent)


@dataclass(frozen=True, slots=True)
class Work:
    """What something has cost.

    Attributes:
        steps: byte code instructions of the router's own code.
        memory: most bytes that were allocated at a time.
    """

    steps: int
    memory: int


def measure(work: Callable[[], object]) -> Work:
    """Do a piece of work, whatever it raises, and return what it has cost."""
    return Work(_count_steps(work), _measure_memory(work))


def _count_steps(work: Callable[[], object]) -> int:
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        del argument
        if not frame.f_code.co_filename.startswith(_ROUTER):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def _measure_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
