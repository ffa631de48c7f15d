"""Requests at C speed: a run of h2load."""

import asyncio
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.speed.programs import find_program

_PATIENCE_S = 120.0


class LoadFailed(Exception):
    """The load generator did not do its work."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to send.

    Attributes:
        url: where to.
        body_file: file with the body of each request.
        requests: how many in all.
        connections: how many connections there are, each with one request at a time.
        headers: headers of each request.
        streams: requests at a time on each connection; more than 1 speaks HTTP/2.
    """

    url: str
    body_file: Path
    requests: int
    connections: int
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: int = 1


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the requests.

    Attributes:
        succeeded: answers with a 2xx status.
        failed: all other requests.
        seconds: from the first request to the last answer.
        p50_us: median time from request to answer, of the successful ones.
        p99_us: its 99th percentile.
    """

    succeeded: int
    failed: int
    seconds: float
    p50_us: float
    p99_us: float


async def send_load(load: Load) -> LoadReport:
    """Send the requests and wait for all answers.

    Raises:
        LoadFailed: h2load has failed, or is not done after two minutes.
    """
    with tempfile.TemporaryDirectory(prefix="pdrouter-") as directory:
        log_file = Path(directory) / "log"
        process = await asyncio.create_subprocess_exec(
            find_program("h2load"),
            *(("--h1",) if load.streams == 1 else ("-m", str(load.streams))),
            *("-n", str(max(load.requests, load.connections)), "-c", str(load.connections)),
            *("-d", load.body_file, "-H", "content-type: application/json"),
            *(
                option
                for name, value in load.headers.items()
                for option in ("-H", f"{name}: {value}")
            ),
            f"--log-file={log_file}",
            load.url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PATIENCE_S):
                _, errors = await process.communicate()
        except TimeoutError:
            raise LoadFailed(f"h2load is not done after {_PATIENCE_S:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise LoadFailed(f"h2load has failed: {errors.decode(errors='replace')}")
        return summarize_log(log_file.read_text().splitlines(), load.requests)


def summarize_log(lines: Sequence[str], requests: int) -> LoadReport:
    """Read h2load's log: start in µs, status and duration in µs of each request.

    Args:
        lines: the log.
        requests: how many were to be sent; what is missing in the log has failed.

    Raises:
        LoadFailed: no request succeeded.
    """
    rows = [tuple(map(int, line.split("\t")[:3])) for line in lines]
    durations = sorted(duration for _, status, duration in rows if 200 <= status < 300)
    if not durations:
        raise LoadFailed(f"none of {requests} requests succeeded")
    begun = min(start for start, _, _ in rows)
    ended = max(start + duration for start, _, duration in rows)
    return LoadReport(
        succeeded=len(durations),
        failed=max(requests, len(rows)) - len(durations),
        seconds=(ended - begun) / 1e6,
        p50_us=find_percentile(durations, 0.5),
        p99_us=find_percentile(durations, 0.99),
    )


def find_percentile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by this share of the values."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
