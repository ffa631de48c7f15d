"""What the README shows first: `pdrouter demo`, as a process of its own."""

import asyncio
import re
import sys

import pytest
from waiting import LONGER_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_demo_shows_each_request_and_what_was_decided() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pdrouter", "demo"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LONGER_S):
            out, err = (part.decode() for part in await process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err
    _, *shown = re.split(r"^\d\. ", out, flags=re.MULTILINE)
    names = [part.partition("\n")[0] for part in shown]
    assert names == [
        "A plain request",
        "A streaming request",
        "A request whose prefill engine breaks the connection",
        "A request that is not valid: refused before any engine sees it",
    ]
    for part in shown[:3]:
        assert re.search(r"^   decision   disaggregated$", part, re.MULTILINE), part
        assert re.search(r"^   pods       prefill \S+ → decode \S+$", part, re.MULTILINE), part
    assert re.search(r"^   as         400 invalid_value, messages$", shown[3], re.MULTILINE)
