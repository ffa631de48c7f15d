"""Writes what was measured for readers: ratios first."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.transports.contenders import TRANSPORTS
from benchmarks.transports.experiment import Samples

_REFERENCE = "grpcio"
_INTRODUCTION = (
    "`make bench-transports` writes this page. The very same `pdrouter/extproc/exchange.py` is "
    "carried by grpcio, and by our own HTTP/2 server on `asyncio.Protocol` "
    "(`pdrouter/extproc/http2`): `PDROUTER_TRANSPORT` chooses."
)
_COSTS = {"router_us": "router, CPU µs", "envoy_us": "Envoy, CPU µs"}
_SHORT = ("router", "Envoy", "p50", "p99", "requests/s")
_TIMES = {"p50_us": "p50 µs", "p99_us": "p99 µs", "per_second": "requests/s"}


def write_report(results: Mapping[str, Any], tests: Mapping[str, Any] | None) -> str:
    """Return the report in Markdown.

    Args:
        results: what was measured.
        tests: what the end-to-end tests said; None if they were not run.
    """
    samples: Samples = results["samples"]
    return "\n".join(
        (
            "# One exchange, two transports",
            "",
            _INTRODUCTION,
            "",
            *_conclude(samples, tests),
            "",
            *_describe_requests(samples),
            *_describe_streams(samples),
            *_describe_memory(samples),
            *_describe_gaps(results["lines"]),
            *_describe_tests(tests),
            *_describe_run(results),
            "",
        )
    )


def find_ratio(samples: Samples, scenario: str, transport: str, figure: str) -> float:
    """Return a figure's median over that of grpcio, round by round."""
    ours, theirs = (samples[scenario][name][figure] for name in (transport, _REFERENCE))
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _conclude(samples: Samples, tests: Mapping[str, Any] | None) -> Iterator[str]:
    loads = _list_loads(samples)
    yield "## Conclusion"
    yield ""
    for name in TRANSPORTS:
        if name == _REFERENCE:
            continue
        costs = [find_ratio(samples, load, name, "router_us") for load in loads]
        waits = [find_ratio(samples, load, name, "p99_us") for load in loads]
        message = find_ratio(samples, "without Envoy", name, "message_us")
        memory = find_ratio(samples, "waiting", name, "kb_per_stream")
        yield (
            f"* **{name}** takes {min(costs):.2f} to {max(costs):.2f} of the router's CPU per "
            f"request that grpcio takes, and {message:.2f} per further message on a stream; p99 "
            f"through Envoy is {min(waits):.2f} to {max(waits):.2f} of grpcio's; a waiting stream "
            f"occupies {memory:.2f} of its memory.{_count_failures(tests, name)}"
        )
    yield ""
    yield (
        "These ratios are of whole requests: the exchange, the prefill POST, metrics and the log "
        "line are in them, and are the same in all columns."
    )


def _count_failures(tests: Mapping[str, Any] | None, name: str) -> str:
    if tests is None:
        return ""
    run = tests["runs"][name]
    return f" {run['passed']} end-to-end tests pass over it, {len(run['failed'])} fail."


def _list_loads(samples: Samples) -> list[str]:
    return [name for name, of in samples.items() if "p50_us" in of[_REFERENCE]]


def _describe_requests(samples: Samples) -> Iterator[str]:
    yield "## Requests through Envoy, with both legs"
    yield ""
    yield "Ratios to grpcio: medians of the ratios within each round."
    yield ""
    figures = {**_COSTS, **_TIMES}
    others = [name for name in TRANSPORTS if name != _REFERENCE]
    columns = [f"{name}: {title}" for name in others for title in _SHORT]
    rows = [
        [
            load,
            *(
                f"{find_ratio(samples, load, name, figure):.2f}"
                for name in others
                for figure in figures
            ),
        ]
        for load in _list_loads(samples)
    ]
    yield from _table(["load", *columns], rows)
    yield "Medians, with the least and the most of all rounds. `failed` counts all rounds."
    yield ""
    rows = [
        [
            load,
            name,
            *(_show(samples[load][name][figure]) for figure in figures),
            f"{sum(samples[load][name]['failed']):.0f}",
        ]
        for load in _list_loads(samples)
        for name in TRANSPORTS
    ]
    yield from _table(["load", "transport", *figures.values(), "failed"], rows)


def _describe_streams(samples: Samples) -> Iterator[str]:
    yield "## Streams without Envoy"
    yield ""
    yield (
        "h2load, 16 streams at a time on one connection; all messages of a stream are sent at "
        "once. A stream has three messages and the prefill POST; further messages are response "
        "chunks that the exchange lets pass."
    )
    yield ""
    of = samples["without Envoy"]
    rows = [
        [
            name,
            f"{find_ratio(samples, 'without Envoy', name, 'stream_us'):.2f}",
            f"{find_ratio(samples, 'without Envoy', name, 'message_us'):.2f}",
            _show(of[name]["stream_us"]),
            _show(of[name]["message_us"], 1),
        ]
        for name in TRANSPORTS
    ]
    head = ["transport", "stream, ratio", "message, ratio", "stream, CPU µs", "message, CPU µs"]
    yield from _table(head, rows)


def _describe_memory(samples: Samples) -> Iterator[str]:
    yield "## Memory while requests wait for prefill"
    yield ""
    of = samples["waiting"]
    rows = [
        [
            name,
            f"{find_ratio(samples, 'waiting', name, 'kb_per_stream'):.2f}",
            *(_show(of[name][figure]) for figure in ("idle_mb", "full_mb", "kb_per_stream")),
        ]
        for name in TRANSPORTS
    ]
    count = f"{of[_REFERENCE]['streams'][0]:.0f}"
    head = ["transport", "per stream, ratio", "idle, MB", f"{count} streams, MB", "per stream, KB"]
    yield from _table(head, rows)
    yield (
        "Resident memory. All were answered in the end. It holds the bodies, the prefill calls "
        "and the exchanges too, and the grpcio library in both: the router loads it anyway."
    )
    yield ""


def _describe_gaps(lines: Mapping[str, int]) -> Iterator[str]:
    yield "## What they have, and lack"
    yield ""
    rows = [
        [name, str(lines[name]), transport.has, transport.lacks]
        for name, transport in TRANSPORTS.items()
    ]
    yield from _table(["transport", "our lines of code", "has", "lacks"], rows)


def _describe_tests(tests: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## End-to-end tests"
    yield ""
    if tests is None:
        yield "Not run: `python -m benchmarks.transports end-to-end` does it."
        yield ""
        return
    yield f"`{' '.join(tests['paths'])}` over each transport, through the real Envoy:"
    yield ""
    runs: Mapping[str, Any] = tests["runs"]
    rows = [
        [name, str(run["passed"]), str(len(run["failed"])), str(run["skipped"])]
        for name, run in runs.items()
    ]
    yield from _table(["transport", "passed", "failed", "skipped"], rows)
    for name, run in runs.items():
        for test, cases in groupby(run["failed"], lambda case: str(case).partition("[")[0]):
            count = len(list(cases))
            yield f"* {name} fails `{test}`" + (f", {count} cases" if count > 1 else "")
    yield ""


def _describe_run(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it was measured"
    yield ""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield (
        f"{results['rounds']} rounds; in each, every transport has its turn at every load, and "
        "the order of the transports rotates. One router process and one Envoy for each, nginx "
        "for the engines, wrk and h2load for the clients, all on one machine with "
        f"{results['cores']} cores, with a load average of {results['load_average']:.1f} "
        "when it began: trust ratios. CPU is the kernel's account of the whole "
        f"process, its threads included. {versions}."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _show(numbers: Sequence[float], digits: int = 0) -> str:
    median = f"{statistics.median(numbers):.{digits}f}"
    if len(numbers) == 1:
        return median
    return f"{median} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"
