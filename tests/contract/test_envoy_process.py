"""The launcher of the real Envoy: ready inside its block, gone after it."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyError, EnvoyProcess, find_envoy

BOOTSTRAP = to_yaml(
    build_bootstrap(
        EnvoyConfig(
            routers=(Address("127.0.0.1", 1),),
            listen=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            router_health_checks=False,
        )
    )
)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_envoy_answers_inside_the_block_and_is_gone_after_it() -> None:
    async with EnvoyProcess.run(BOOTSTRAP) as envoy, httpx.AsyncClient(timeout=30) as client:
        assert is_running(envoy.pid)
        assert (await client.get(f"http://{envoy.listener}/")).status_code == 503
        assert (await client.get(f"http://{envoy.admin}/ready")).status_code == 200
        assert envoy.log_file.exists()
    assert not is_running(envoy.pid)
    assert not envoy.log_file.exists()


async def test_two_envoys_run_side_by_side() -> None:
    async with EnvoyProcess.run(BOOTSTRAP) as first, EnvoyProcess.run(BOOTSTRAP) as second:
        assert first.listener != second.listener


async def test_envoy_is_gone_after_a_cancelled_block() -> None:
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with EnvoyProcess.run(BOOTSTRAP) as envoy:
            started.set_result(envoy.pid)
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    pid = await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_running(pid)


async def test_an_envoy_that_ignores_sigterm_is_killed() -> None:
    async with EnvoyProcess.run(BOOTSTRAP, stop_timeout_s=0.1) as envoy:
        os.kill(envoy.pid, signal.SIGSTOP)
    assert not is_running(envoy.pid)


async def test_a_refused_configuration_is_reported_with_the_log() -> None:
    with pytest.raises(EnvoyError, match=r"(?s)exit code 1.*no_such_field"):
        async with EnvoyProcess.run(BOOTSTRAP + "no_such_field: 1\n"):
            pass


async def test_an_envoy_that_is_not_ready_in_time_is_reported_and_stopped() -> None:
    with pytest.raises(EnvoyError, match="not ready after"):
        async with EnvoyProcess.run(BOOTSTRAP, start_timeout_s=0.001):
            pass


class TestFindEnvoy:
    @pytest.fixture(autouse=True)
    def other_envoy_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        package = ModuleType("envoy")
        package.__spec__ = sys.modules[__name__].__spec__
        monkeypatch.setitem(sys.modules, "envoy", package)

    def test_takes_the_one_on_the_path_where_the_package_has_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        binary = tmp_path / "envoy"
        binary.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_envoy() == binary

    def test_says_how_to_get_one_where_there_is_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(EnvoyError, match=r"install pdrouter\[demo\]"):
            find_envoy()
