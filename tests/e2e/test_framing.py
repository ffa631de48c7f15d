"""No request leaves the filter undecided, however it is framed."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from expectations import DECODE, PREFILL, chat, count_received, expect_settled
from listeners import find_ext_proc, run_listeners
from raw_requests import POST_CHAT, Fields, send_bytes, send_frames

from pdrouter.tools.envoy_config import Address, Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = json.dumps(chat()).encode()
TRAILERS = [("x-trailer", "of the client")]
HTTP_1 = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = HTTP_1 + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)


def take_trailers(manager: dict[str, Any]) -> None:
    manager["http_protocol_options"] = {"enable_trailers": True}


def skip_trailers(manager: dict[str, Any]) -> None:
    """As Envoy Gateway writes the filter, which has no field for it."""
    take_trailers(manager)
    del find_ext_proc(manager)["processing_mode"]["request_trailer_mode"]


def skip_trailers_for_good(manager: dict[str, Any]) -> None:
    skip_trailers(manager)
    find_ext_proc(manager)["allow_mode_override"] = False


def skip_response_headers(manager: dict[str, Any]) -> None:
    """As Envoy Gateway writes the filter for a policy that says nothing of responses."""
    find_ext_proc(manager)["processing_mode"]["response_header_mode"] = "SKIP"


def skip_headers(manager: dict[str, Any]) -> None:
    find_ext_proc(manager)["processing_mode"]["request_header_mode"] = "SKIP"


def upgrade(manager: dict[str, Any]) -> None:
    manager["upgrade_configs"] = [{"upgrade_type": "websocket"}, {"upgrade_type": "CONNECT"}]
    manager["http2_protocol_options"]["allow_connect"] = True
    connect = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "pods",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager["route_config"]["virtual_hosts"][0]["routes"].insert(0, connect)


EDITS = {
    "as printed": take_trailers,
    "without trailers": skip_trailers,
    "without trailers for good": skip_trailers_for_good,
    "without response headers": skip_response_headers,
    "without headers": skip_headers,
    "with upgrades": upgrade,
}


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(prefill=PREFILL, decode=DECODE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listeners(stack: LocalStack) -> AsyncIterator[Mapping[str, str]]:
    # What is not decided goes to a pod here, and nowhere with the other routing.
    decode = tuple(Address.parse(engine.address) for engine in stack.decode)
    async with run_listeners(
        stack, EDITS, routing=Routing.OVERRIDE_HOST, decode=decode
    ) as addresses:
        yield addresses


def with_length(length: int) -> Fields:
    return (*POST_CHAT, ("content-length", str(length)))


WITHOUT_BODY = {
    "headers only": (POST_CHAT,),
    "trailers": (POST_CHAT, TRAILERS),
    "no length, trailers": (with_length(0), TRAILERS),
    "empty data": (POST_CHAT, b""),
    "empty data, trailers": (POST_CHAT, b"", TRAILERS),
}


@pytest.mark.parametrize("frames", WITHOUT_BODY.values(), ids=WITHOUT_BODY)
@pytest.mark.parametrize("listener", ["as printed", "without trailers"])
async def test_a_request_without_a_body_goes_to_no_pod(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, frames: Any
) -> None:
    before = count_received(stack)
    headers, body = await send_frames(listeners[listener], *frames)
    assert headers[":status"] == "400"
    assert json.loads(body)["error"]["code"] == "invalid_body"
    assert count_received(stack) == before
    await expect_settled(stack)


@pytest.mark.parametrize("listener", ["as printed", "without trailers"])
@pytest.mark.parametrize("trailers", [b"", b"x-trailer: 1\r\n"], ids=["empty", "trailers"])
async def test_chunks_without_a_byte_go_to_no_pod(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, trailers: bytes
) -> None:
    before = count_received(stack)
    request = CHUNKED + b"0\r\n" + trailers + b"\r\n"
    status, answer = await send_bytes(listeners[listener], request)
    assert (status, b'"invalid_body"' in answer) == (400, True)
    assert count_received(stack) == before
    await expect_settled(stack)


BODIES: dict[str, tuple[Any, ...]] = {
    "data": (POST_CHAT, BODY),
    "data, empty data": (POST_CHAT, BODY, b""),
    "data, trailers": (POST_CHAT, BODY, TRAILERS),
    "length, data, trailers": (with_length(len(BODY)), BODY, TRAILERS),
}


@pytest.mark.parametrize("frames", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize(
    "listener",
    ["as printed", "without trailers", "without trailers for good", "without response headers"],
)
async def test_a_request_with_a_body_is_decided(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, frames: Any
) -> None:
    headers, body = await send_frames(listeners[listener], *frames)
    assert (headers[":status"], headers["x-pd-decision"]) == ("200", "disaggregated"), body
    await expect_settled(stack)


async def test_what_a_pod_says_to_a_request_that_was_not_decided_reaches_nobody(
    stack: LocalStack, listeners: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    headers, body = await send_frames(listeners["without trailers for good"], POST_CHAT, TRAILERS)
    assert headers[":status"] == "400"
    assert json.loads(body)["error"]["code"] == "invalid_body"
    assert "request_trailer_mode" in caplog.text
    await expect_settled(stack)


@pytest.mark.parametrize(
    "frames", [(POST_CHAT, BODY), (POST_CHAT, TRAILERS), (POST_CHAT,)], ids=["data", "trailers", ""]
)
async def test_a_filter_that_skips_headers_is_found_out(
    stack: LocalStack, listeners: Mapping[str, str], frames: Any
) -> None:
    headers, body = await send_frames(listeners["without headers"], *frames)
    assert headers[":status"] == "500"
    error = json.loads(body)["error"]
    assert error["code"] == "ext_proc_misconfigured"
    assert "request_header_mode" in error["message"]
    await expect_settled(stack)


H2C = b"connection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
UPGRADE = b"connection: Upgrade\r\nupgrade: WebSocket\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [HTTP_1 + UPGRADE + b"\r\n", HTTP_1 + UPGRADE + LENGTH + b"\r\n" + BODY],
    ids=["no body", "body"],
)
async def test_an_upgrade_is_refused_though_the_listener_takes_it(
    stack: LocalStack, listeners: Mapping[str, str], request_bytes: bytes
) -> None:
    before = count_received(stack)
    status, answer = await send_bytes(listeners["with upgrades"], request_bytes)
    assert (status, b'"upgrade_not_supported"' in answer) == (400, True)
    assert count_received(stack) == before
    await expect_settled(stack)


@pytest.mark.parametrize("listener", ["as printed", "with upgrades"])
@pytest.mark.parametrize(
    "fields",
    [H2C, b"connection: close\r\nupgrade: websocket\r\n"],
    ids=["h2c", "not asked for"],
)
async def test_what_is_no_upgrade_to_envoy_is_served(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, fields: bytes
) -> None:
    status, answer = await send_bytes(
        listeners[listener], HTTP_1 + fields + LENGTH + b"\r\n" + BODY
    )
    assert (status, b"x-pd-decision: disaggregated" in answer) == (200, True), answer
    await expect_settled(stack)


TUNNELS: dict[str, Fields] = {
    "CONNECT": ((":method", "CONNECT"), (":authority", "x:80")),
    "websocket": ((":method", "CONNECT"), (":protocol", "websocket"), *POST_CHAT[1:]),
}


@pytest.mark.parametrize("headers", TUNNELS.values(), ids=TUNNELS)
async def test_a_tunnel_is_refused(
    stack: LocalStack, listeners: Mapping[str, str], headers: Fields
) -> None:
    before = count_received(stack)
    answer, body = await send_frames(listeners["with upgrades"], headers, b"x")
    assert answer[":status"] == "405"
    assert json.loads(body)["error"]["code"] == "method_not_allowed"
    assert count_received(stack) == before
    await expect_settled(stack)


@pytest.mark.parametrize(
    "field",
    [
        b"x-session-id: caf\xe9 \xff\r\n",
        "baggage: name=café".encode() + b"\r\n",
        b"x-request-id: \xff\r\n",
        b"anthropic-beta: a\r\nanthropic-beta:\r\nanthropic-beta: b\r\n",
        b"routing-strategy: PD\r\nrouting-strategy: pd\r\n",
        b"authorization:\r\n",
    ],
)
async def test_odd_values_of_headers_do_no_harm(
    stack: LocalStack, listeners: Mapping[str, str], field: bytes
) -> None:
    request = HTTP_1 + b"connection: close\r\n" + field + LENGTH + b"\r\n" + BODY
    status, answer = await send_bytes(listeners["as printed"], request)
    assert (status, b"x-pd-decision: disaggregated" in answer) == (200, True), answer
    await expect_settled(stack)
