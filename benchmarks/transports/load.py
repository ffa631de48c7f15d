"""Load at C speed: wrk for clients of Envoy, h2load for streams without Envoy."""

import asyncio
import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.transports.tools import find_tool

_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format('\\n{{"requests": %d, "failed": %d, "p50_us": %d, "p99_us": %d}}\\n',
        summary.requests,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
"""


class LoadFailed(Exception):
    """A load generator did not do what it was told."""


@dataclass(frozen=True, slots=True)
class HttpLoad:
    """What clients saw.

    Attributes:
        requests: answered requests.
        failed: those that failed, or were answered with another status than 2xx or 3xx.
        p50_us: median time of an answer.
        p99_us: time within which 99 % were answered.
    """

    requests: int
    failed: int
    p50_us: float
    p99_us: float


@asynccontextmanager
async def begin_http(
    url: str, body: bytes, connections: int, seconds: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run wrk, with one request at a time on each connection; what is left of it is killed."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-wrk-") as name:
        directory = Path(name)
        (directory / "body").write_bytes(body)
        script = directory / "post.lua"
        script.write_text(_SCRIPT.format(body=directory / "body"))
        process = await asyncio.create_subprocess_exec(
            *(find_tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds}s"),
            *("--timeout", "60s", "-s", script, url),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def send_http(url: str, body: bytes, connections: int, seconds: int) -> HttpLoad:
    """Send the same request over and over; return what became of it.

    Raises:
        LoadFailed: wrk did not work.
    """
    async with begin_http(url, body, connections, seconds) as process:
        async with asyncio.timeout(seconds + 60):
            output, _ = await process.communicate()
    try:
        return HttpLoad(**json.loads(output.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise LoadFailed(f"wrk: {output.decode()}") from error


async def send_streams(address: str, path: str, messages: bytes, count: int) -> int:
    """Open gRPC streams, 16 at a time on one connection, each with all its messages at once.

    Returns:
        How many bytes of replies came in all.

    Raises:
        LoadFailed: not all streams were answered.
    """
    with tempfile.NamedTemporaryFile(prefix="pdrouter-h2load-") as file:
        file.write(messages)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *(find_tool("h2load", "nghttp2-client"), f"-n{count}", "-c1", "-m16", "-d", file.name),
            *("-w24", "-W24", "-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://{address}{path}",
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):
            output = (await process.communicate())[0].decode()
    succeeded = re.search(r"(\d+) succeeded", output)
    data = re.search(r"\((\d+)\) data", output)
    if succeeded is None or data is None or int(succeeded[1]) != count:
        raise LoadFailed(f"h2load: {output}")
    return int(data[1])
