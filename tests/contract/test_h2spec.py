"""Every case of h2spec, an independent judge of HTTP/2 servers, where it is installed."""

import asyncio
import shutil
from pathlib import Path

import pytest
from http2_peer import echo

from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.rpc_server import RpcServer
from pdrouter.extproc.http2.stream import Stream

_PATIENCE_S = 120
_STREAMS = 100
_ANSWER_S = 0.05
_TOOL = shutil.which("h2spec") or shutil.which("h2spec", path=Path.home() / "go" / "bin")


class Unhurried(RpcServer):
    """Answers so late that all streams which the tool may open are open at once."""

    async def _refuse(self, stream: Stream) -> None:
        await asyncio.sleep(_ANSWER_S)
        await super()._refuse(stream)


@pytest.mark.skipif(_TOOL is None, reason="h2spec is not installed: `make h2spec` does that")
async def test_all_cases_pass() -> None:
    server = Unhurried({"/test/Echo": echo}, Limits(streams=_STREAMS))
    port = await server.listen("127.0.0.1", 0)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            process = await asyncio.create_subprocess_exec(
                *(str(_TOOL), "-h", "127.0.0.1", "-p", str(port)),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
    finally:
        await server.stop()
    summary = output.decode().splitlines()[-1]
    assert (process.returncode, summary) == (
        0,
        "145 tests, 145 passed, 0 skipped, 0 failed",
    ), output.decode()
