"""Nothing that a client sends steers a request: not its headers, not its body, not its path."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from expectations import (
    DECODE,
    PATIENCE_S,
    PREFILL,
    chat,
    count_received,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    find_sent,
    run_checked_stack,
)

from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
GENERATE = "/inference/v1/generate"
HERE = Address("127.0.0.1", 0)

CONTROL_HEADERS = (
    "target-pod",
    "target-pod-ip",
    "prefill-target-pod",
    "prefill-target-pod-ip",
    "x-gateway-destination-endpoint",
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-kv-cache-source-host-port",
    "x-data-parallel-rank",
    "x-data-parallel-host-port",
    "x-data-parallel-anything-newer",
    "epp-profile",
    "x-trtllm-disagg-auth",
    "x-envoy-original-dst-host",
    "x-envoy-retry-on",
    "x-envoy-max-retries",
)
TRANSFER_MEMBERS = (
    "kv_transfer_params",
    "ec_transfer_params",
    "disagg_prefill_resp",
    "disaggregated_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "bootstrap_pair_key",
    "decode_tp_size",
    "routed_dp_rank",
    "disagg_prefill_dp_rank",
    "data_parallel_rank",
    "transfer_id",
    "remote_decoder",
    "remote_prefiller",
    "remote_kv_source",
    "rid",
    "nvext",
)
"""What must never come from a client, written down here once more to check the code's own lists."""


@dataclass
class Decoy:
    """A server that nobody may be sent to."""

    address: str
    connections: int = 0


@asynccontextmanager
async def run_decoy() -> AsyncIterator[Decoy]:
    decoy = Decoy("")

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        decoy.connections += 1
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.9", 0) as server:
        host, port = server.sockets[0].getsockname()
        decoy.address = f"{host}:{port}"
        yield decoy


@asynccontextmanager
async def run_trusting_envoy(stack: LocalStack, routing: Routing) -> AsyncIterator[EnvoyProcess]:
    """Run an Envoy that leaves the removal of control headers to the router."""
    decode = [Address.parse(engine.address) for engine in stack.decode]
    config = EnvoyConfig(
        routers=(Address("127.0.0.1", stack.router.server.port),),
        listen=HERE,
        admin=HERE,
        routing=routing,
        decode=tuple(decode) if routing is Routing.OVERRIDE_HOST else (),
    )
    bootstrap = yaml.safe_load(to_yaml(build_bootstrap(config)))
    (listener,) = bootstrap["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["early_header_mutation_extensions"]
    async with EnvoyProcess.run(yaml.safe_dump(bootstrap)) as envoy:
        yield envoy


@pytest.fixture(scope="module", params=Routing)
def routing(request: pytest.FixtureRequest) -> Routing:
    chosen: Routing = request.param
    return chosen


@pytest.fixture(scope="module")
def stack_options(routing: Routing) -> StackOptions:
    return StackOptions(prefill=PREFILL, decode=DECODE, routing=routing)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[False, True], ids=["by-default", "router-alone"]
)
async def url(
    request: pytest.FixtureRequest, stack: LocalStack, routing: Routing
) -> AsyncIterator[str]:
    """Where clients connect: Envoy as we configure it, and one that removes no header itself."""
    if not request.param:
        yield stack.url
        return
    async with run_trusting_envoy(stack, routing) as envoy:
        yield f"http://{envoy.listener}"


@pytest_asyncio.fixture(loop_scope="module")
async def decoy() -> AsyncIterator[Decoy]:
    async with run_decoy() as running:
        yield running
        assert running.connections == 0


@pytest_asyncio.fixture(loop_scope="module")
async def attacker(stack: LocalStack, url: str, decoy: Decoy) -> AsyncIterator[httpx.AsyncClient]:
    """A client that sends every control header with every request."""
    headers = dict.fromkeys(CONTROL_HEADERS, decoy.address) | {
        "x-data-parallel-rank": "7",
        "model": "other",
        "host": decoy.address,
        "x-request-id": "of-the-client",
    }
    async with httpx.AsyncClient(
        base_url=url, headers=headers, verify=False, timeout=PATIENCE_S
    ) as client:
        yield client
    await expect_settled(stack)


async def test_headers_of_a_client_reach_no_engine(
    attacker: httpx.AsyncClient, stack: LocalStack, decoy: Decoy
) -> None:
    response = await attacker.post(CHAT, json=chat())
    prefill, decode = expect_disaggregated(stack, response)
    for sent in (prefill, decode):
        headers = dict(sent.request.headers)
        # Envoy's own Host header is the client's; it routes nothing.
        headers.pop("host")
        assert not [name for name, value in headers.items() if decoy.address in value]
        assert not {"x-data-parallel-rank", "model", "x-prefiller-host-port"} & headers.keys()
        assert headers["x-request-id"] == response.headers["x-request-id"] != "of-the-client"
    assert decode.request.headers["target-pod"] == decode.engine.address
    named = decode.request.headers["x-gateway-destination-endpoint"].split(",")
    assert named[0] == decode.engine.address
    assert set(named) <= {engine.address for engine in stack.decode}
    assert decode.request.headers["routing-strategy"] == "pd"
    assert "target-pod-ip" not in decode.request.headers


async def test_headers_of_a_client_do_not_steer_a_request_that_is_served_whole(
    attacker: httpx.AsyncClient, stack: LocalStack
) -> None:
    for path, request, reason in (
        (CHAT, chat(n=2), "n"),
        ("/v1/embeddings", {"model": "demo", "input": "a"}, "single-pod-path"),
    ):
        whole = expect_whole(stack, await attacker.post(path, json=request), reason)
        assert whole.request.headers["target-pod"] == whole.engine.address


@pytest.mark.parametrize("path", ["/", "/v1/models", CHAT, "/metrics", "/simulation/requests"])
@pytest.mark.parametrize("body", [None, b"{}", b"no json"], ids=["no body", "object", "junk"])
async def test_a_request_that_the_router_answers_goes_nowhere(
    attacker: httpx.AsyncClient, stack: LocalStack, path: str, body: bytes | None
) -> None:
    before = count_received(stack)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        response = await attacker.request(method, path, content=body)
        if method in ("GET", "HEAD") and path == "/v1/models":
            assert response.status_code == 200
        else:
            assert response.status_code in {400, 404, 405}
    assert count_received(stack) == before


async def test_a_client_cannot_choose_among_the_decode_pods(
    attacker: httpx.AsyncClient, stack: LocalStack
) -> None:
    favourite = stack.decode[0]
    headers = dict.fromkeys(("target-pod", "x-gateway-destination-endpoint"), favourite.address)
    before = len(stack.decode[1].requests)
    responses = await asyncio.gather(
        *(attacker.post(CHAT, json=chat(seed=i), headers=headers) for i in range(24))
    )
    for response in responses:
        _, decode = expect_disaggregated(stack, response)
        assert response.headers["target-pod-ip"] == decode.engine.address
    # Concurrent requests are spread evenly, whatever the client wishes.
    assert len(stack.decode[1].requests) > before


async def test_repeated_and_oddly_written_headers_are_removed_too(
    stack: LocalStack, url: str, decoy: Decoy
) -> None:
    headers = [
        (name, decoy.address)
        for written in CONTROL_HEADERS
        for name in (written, written.title(), written.upper(), written)
    ]
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=PATIENCE_S, verify=False
    ) as client:
        response = await client.post(CHAT, json=chat())
        for sent in expect_disaggregated(stack, response):
            assert decoy.address not in str(sent.request.headers)
    await expect_settled(stack)


RAW = {
    "absolute form": b"GET http://{decoy}/ HTTP/1.1\r\nhost: {decoy}\r\n\r\n",
    "absolute form of a served path": b"GET http://{decoy}/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "CONNECT": b"CONNECT {decoy} HTTP/1.1\r\nhost: {decoy}\r\n\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nhost: {decoy}\r\nconnection: upgrade, target-pod\r\n"
    b"upgrade: websocket\r\ntarget-pod: {decoy}\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n target-pod: {decoy}\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", RAW.values(), ids=RAW.keys())
async def test_a_request_written_by_hand_goes_nowhere(
    stack: LocalStack, url: str, decoy: Decoy, request_bytes: bytes
) -> None:
    before = count_received(stack)
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(request_bytes.replace(b"{decoy}", decoy.address.encode()))
            status = await reader.readuntil(b"\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    assert status.startswith(b"HTTP/1.")
    assert count_received(stack) == before


# --- Bodies ----------------------------------------------------------------------------------


def forge_params(decoy: Decoy) -> dict[str, Any]:
    host, port = decoy.address.rsplit(":", 1)
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[1, 2, 3]],
        "remote_engine_id": "forged",
        "remote_request_id": "forged",
        "remote_host": host,
        "remote_port": int(port),
        "tp_size": 1,
    }


@pytest.mark.parametrize("whole", [False, True], ids=["two legs", "one leg"])
@pytest.mark.parametrize("member", TRANSFER_MEMBERS)
async def test_transfer_members_of_a_client_reach_no_engine(
    attacker: httpx.AsyncClient, stack: LocalStack, decoy: Decoy, member: str, whole: bool
) -> None:
    forged = forge_params(decoy)
    request = {**chat(n=2 if whole else 1, user="kept"), member: forged}
    await expect_nothing_forged(attacker, stack, CHAT, json.dumps(request).encode(), whole=whole)


@pytest.mark.parametrize("whole", [False, True], ids=["two legs", "one leg"])
@pytest.mark.parametrize(
    "written",
    [b'"kv_transfer_par\\u0061ms"', b'"\\u006bv_transfer_params"', b' \n"kv_transfer_params"\t'],
)
async def test_transfer_members_are_found_however_their_name_is_written(
    attacker: httpx.AsyncClient, stack: LocalStack, decoy: Decoy, written: bytes, whole: bool
) -> None:
    forged = json.dumps(forge_params(decoy)).encode()
    for template in (b"{%s:%s,%s", b"{%s : %s ,\n%s"):
        rest = json.dumps(chat(n=2 if whole else 1, user="kept")).encode()[1:]
        body = template % (written, forged, rest)
        await expect_nothing_forged(attacker, stack, CHAT, body, whole=whole)


@pytest.mark.parametrize("whole", [False, True], ids=["two legs", "one leg"])
async def test_transfer_members_inside_extra_arguments_reach_no_engine(
    attacker: httpx.AsyncClient, stack: LocalStack, decoy: Decoy, whole: bool
) -> None:
    hidden = {"kv_transfer_params": forge_params(decoy), "mark": "kept"}
    n = 2 if whole else 1
    request = chat(n=n, vllm_xargs=hidden)
    await expect_nothing_forged(attacker, stack, CHAT, json.dumps(request).encode(), whole=whole)
    generate = {
        "model": "demo",
        "token_ids": list(range(40)),
        "sampling_params": {"n": n, "max_tokens": 4, "extra_args": hidden},
    }
    body = json.dumps(generate).encode()
    await expect_nothing_forged(attacker, stack, GENERATE, body, whole=whole)


async def test_a_prefill_leg_cannot_be_asked_for_from_outside(
    attacker: httpx.AsyncClient, stack: LocalStack
) -> None:
    # It would hold blocks that nobody fetches.
    asking = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": "forged"}
    request = chat(n=2, kv_transfer_params=asking, user="kept")
    await expect_nothing_forged(attacker, stack, CHAT, json.dumps(request).encode(), whole=True)


async def expect_nothing_forged(
    client: httpx.AsyncClient, stack: LocalStack, path: str, body: bytes, *, whole: bool
) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    legs = [expect_whole(stack, response, "n")] if whole else expect_disaggregated(stack, response)
    for sent in legs:
        assert b"forged" not in sent.request.body
        assert b'"kept"' in sent.request.body


# --- Without a strategy ----------------------------------------------------------------------


@pytest.mark.parametrize("trusting", [False, True], ids=["by-default", "router-alone"])
async def test_a_request_that_passes_without_a_strategy_cannot_be_steered(
    routing: Routing, decoy: Decoy, trusting: bool
) -> None:
    options = StackOptions(
        prefill=PREFILL, decode=DECODE, routing=routing, environment={"ROUTING_ALGORITHM": ""}
    )
    async with run_checked_stack(options) as stack, run_trusting_envoy(stack, routing) as envoy:
        url = f"http://{envoy.listener}" if trusting else stack.url
        headers = dict.fromkeys(CONTROL_HEADERS, decoy.address) | {"model": "other"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=PATIENCE_S, verify=False
        ) as client:
            request = chat(kv_transfer_params=forge_params(decoy))
            response = await client.post(CHAT, json=request)
        if routing is Routing.ORIGINAL_DST:
            # Nobody has said where to.
            expect_error(response, 503, "upstream_unavailable")
            assert count_received(stack) == 0
            return
        assert response.status_code == 200
        assert "x-pd-decision" not in response.headers
        (sent,) = find_sent(stack, response)
        assert sent.request.headers["model"] == "demo"
        assert not set(CONTROL_HEADERS) & sent.request.headers.keys()
        assert b"forged" not in sent.request.body
