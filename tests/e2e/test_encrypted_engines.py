"""Engines that serve HTTPS: both legs, scrapes, and a pod that nobody should trust."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio
from authority import Authority, Pair
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_settled,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, read_line, try_first

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "engines.test"


def encrypt(engine: EngineConfig, pair: Pair) -> EngineConfig:
    return replace(engine, tls_certificate=str(pair.certificate), tls_key=str(pair.key))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority.create(directory, "authority")
    pair = authority.sign(directory, NAME)
    stranger = Authority.create(directory, "other").sign(directory, "stranger")
    options = StackOptions(
        prefill=[encrypt(PREFILL[0], pair), encrypt(PREFILL[1], stranger)],
        decode=[encrypt(DECODE[0], pair)],
        environment={
            "PDROUTER_ENGINE_TLS": "on",
            "PDROUTER_ENGINE_CA": str(authority.pair.certificate),
            "PDROUTER_ENGINE_SERVER_NAME": NAME,
            # The pod that fails must be tried all the same.
            "PDROUTER_EJECT_AFTER": "0",
        },
    )
    async with run_checked_stack(options) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(stack) as connected:
        yield connected
    await expect_settled(stack)


async def test_both_legs_are_encrypted(stack: LocalStack, client: httpx.AsyncClient) -> None:
    for body in (chat(), chat(stream=True), chat(user="u" * 300_000)):
        with try_first(stack, stack.prefill[0]):
            response = await client.post(CHAT, json=body)
        expect_disaggregated(stack, response)


async def test_metrics_of_engines_are_read(stack: LocalStack) -> None:
    async def expect_samples() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_scrape_failures_total", cause="connect") > 0
        assert len(stack.router.knowledge.samples) == 2

    await eventually(expect_samples)


async def test_a_pod_that_is_not_trusted_gets_nothing(
    stack: LocalStack, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter.request")
    trusted, stranger = stack.prefill
    with try_first(stack, stranger):
        response = await client.post(CHAT, json=chat())
    assert response.headers["x-pd-decision"] == "disaggregated"
    line = await read_line(caplog, response.headers["x-request-id"])
    (failed,) = line["failed_attempts"]
    assert failed["failure"] == "connect"
    assert "its certificate is not trusted" in failed["message"]
    assert trusted.requests
    assert not stranger.requests
