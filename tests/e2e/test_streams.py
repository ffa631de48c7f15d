"""The gRPC server as Envoy's side sees it: many streams at once, and streams that make no sense."""

import asyncio
import json
import resource
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import yaml
from expectations import chat, eventually
from processes import RouterProcess

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.server import SERVICE

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAMS = 2_000
MIB = 2**20

HEADERS = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json"}
ANSWER = json.dumps(
    {
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2]],
            "remote_engine_id": "engine",
            "remote_request_id": "request",
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
        }
    }
).encode()


@dataclass
class PrefillStub:
    """Answers the prefill leg with the same handle, once it may.

    Attributes:
        open: requests that wait for their answer.
        may_answer: set while it answers.
    """

    open: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Serve; gives the address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=STREAMS)
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = (
                int(line.split(b":")[1])
                for line in head.lower().splitlines()
                if line.startswith(b"content-length:")
            )
            await reader.readexactly(length)
            self.open += 1
            try:
                await self.may_answer.wait()
            finally:
                self.open -= 1
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + ANSWER)
        finally:
            writer.close()


@dataclass(frozen=True)
class Bench:
    """A router process, with one prefill stub behind it."""

    router: RouterProcess
    prefill: PrefillStub

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Open a connection; gives what opens an ext_proc stream, of bytes in both directions."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        address = str(self.router.grpc_address)
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield channel.stream_stream(f"/{SERVICE}/Process")


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """Each stream that waits for prefill holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    stub = PrefillStub()
    async with stub.listen() as address:
        with tempfile.TemporaryDirectory(prefix="pdrouter-") as directory:
            file = Path(directory) / "endpoints.yaml"
            roleset = {"name": "default", "prefill": [address], "decode": ["127.0.0.1:9"]}
            file.write_text(yaml.safe_dump({"models": [{"name": "demo", "rolesets": [roleset]}]}))
            environment = {
                "ROUTING_ALGORITHM": "pd",
                "PDROUTER_ENDPOINTS": str(file),
                "PDROUTER_PREFILL_CONNECT_TIMEOUT": "30",
            }
            async with RouterProcess.serving(environment) as router:
                yield Bench(router, stub)


def request_headers(*, end_of_stream: bool = False, **headers: str) -> bytes:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end_of_stream
    for name, value in (HEADERS | headers).items():
        message.request_headers.headers.headers.append(
            pb.HeaderValue(key=name, raw_value=value.encode()).SerializeToString()
        )
    config = pb.ProtocolConfiguration(request_body_mode=pb.ProcessingMode.BUFFERED)
    message.protocol_config = config.SerializeToString()
    return message.SerializeToString()


def request_body(content: bytes | None = None) -> bytes:
    body = json.dumps(chat()).encode() if content is None else content
    message = pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    return message.SerializeToString()


def response_headers() -> bytes:
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.append(
        pb.HeaderValue(key=":status", raw_value=b"200").SerializeToString()
    )
    return message.SerializeToString()


def response_body() -> bytes:
    message = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"data: 1\n\n"))
    return message.SerializeToString()


def request_trailers() -> bytes:
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers()).SerializeToString()


GOOD = (request_headers(), request_body(), response_headers())


async def converse(
    open_stream: Any, messages: Sequence[bytes]
) -> tuple[list[pb.ProcessingResponse], grpc.StatusCode]:
    """Send messages, each after the reply to the one before; return the replies and the status."""
    call = open_stream()
    replies = []
    with suppress(grpc.aio.AioRpcError):
        for message in messages:
            await call.write(message)
            reply = await call.read()
            if reply is grpc.aio.EOF:
                break
            replies.append(pb.ProcessingResponse.FromString(reply))
            if replies[-1].HasField("immediate_response"):
                break
        else:
            await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    return replies, await call.code()


async def expect_served(open_stream: Any) -> None:
    """Check that a request goes its way."""
    replies, code = await converse(open_stream, GOOD)
    assert code is grpc.StatusCode.OK
    kinds = [reply.WhichOneof("response") for reply in replies]
    assert kinds == ["request_headers", "request_body", "response_headers"]
    mutation = replies[1].request_body.response.header_mutation
    sent = {option.header.key: option.header.raw_value for option in mutation.set_headers}
    assert sent["target-pod"] == b"127.0.0.1:9"
    assert b"remote_block_ids" in replies[1].request_body.response.body_mutation.body


async def test_thousands_of_requests_wait_for_prefill_at_once(bench: Bench) -> None:
    bench.prefill.may_answer.clear()
    idle = bench.router.resident_bytes
    async with bench.connect() as open_stream:
        requests = [asyncio.create_task(expect_served(open_stream)) for _ in range(STREAMS)]

        async def all_wait() -> None:
            assert bench.prefill.open == STREAMS

        await eventually(all_wait)
        metrics = await bench.router.read_metrics()
        assert metrics.total("pdrouter_requests_in_flight") == STREAMS
        assert metrics.total("pdrouter_pod_prefill_requests") == STREAMS
        assert (bench.router.resident_bytes - idle) / STREAMS < 100_000
        bench.prefill.may_answer.set()
        await asyncio.gather(*requests)
    await bench.router.expect_idle()


NONSENSE = {
    "nothing": [],
    "an empty message": [b""],
    "garbage": [b"\xff\xff\xff\xff"],
    "text": [b"GET / HTTP/1.1\r\n\r\n"],
    "half a message": [request_headers()[:-5]],
    "garbage for a body": [request_headers(), b"\x22\xff"],
    "garbage after the answer": [*GOOD, b"\xff"],
    "a body without headers": [request_body()],
    "a body after headers that end the request": [
        request_headers(end_of_stream=True),
        request_body(),
    ],
    "headers twice": [request_headers(), request_headers()],
    "a body twice": [request_headers(), request_body(), request_body()],
    "an empty body": [request_headers(), request_body(b"")],
    "a body that is no JSON": [request_headers(), request_body(b"\x00" * 1_000)],
    "a response without a request": [response_headers()],
    "a response before the body": [request_headers(), response_headers()],
    "a response twice": [*GOOD, response_headers()],
    "a response body first": [response_body()],
    "trailers first": [request_trailers()],
    "headers only": [request_headers()],
    "no response": [request_headers(), request_body()],
    "no path": [pb.ProcessingRequest(request_headers=pb.HttpHeaders()).SerializeToString()],
}


@pytest.mark.parametrize("messages", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_answered_or_ended_and_harms_nobody(
    bench: Bench, messages: list[bytes]
) -> None:
    bench.prefill.may_answer.set()
    async with bench.connect() as open_stream:
        replies, code = await converse(open_stream, messages)
        assert code is grpc.StatusCode.OK
        assert len(replies) <= len(messages)
        assert "immediate_response" not in [each.WhichOneof("response") for each in replies[:-1]]
        await expect_served(open_stream)
    await bench.router.expect_idle()


async def test_any_order_of_messages_is_survived(bench: Bench) -> None:
    bench.prefill.may_answer.set()
    random = Random(1)
    pieces = [*GOOD, *GOOD, response_body(), request_trailers(), b"", b"\xff\xff", b"\x12\x02"]
    async with bench.connect() as open_stream:
        for _ in range(30):
            conversations = [
                converse(open_stream, random.choices(pieces, k=random.randint(1, 6)))
                for _ in range(10)
            ]
            for replies, code in await asyncio.gather(*conversations):
                assert code is grpc.StatusCode.OK
                kinds = [reply.WhichOneof("response") for reply in replies]
                assert None not in kinds
                assert "immediate_response" not in kinds[:-1]
        await expect_served(open_stream)
    await bench.router.expect_idle()


async def test_a_peer_that_does_not_wait_for_replies_harms_nobody(bench: Bench) -> None:
    bench.prefill.may_answer.set()
    async with bench.connect() as open_stream:
        for messages in NONSENSE.values():
            call = open_stream()
            # A stream that the server has ended takes no more messages.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for message in (*messages, *GOOD):
                    await call.write(message)
            call.cancel()
        await expect_served(open_stream)
    await bench.router.expect_idle()


async def test_a_message_above_the_limit_costs_only_its_own_stream(bench: Bench) -> None:
    async with bench.connect() as open_stream:
        _, code = await converse(open_stream, [request_headers(), request_body(b" " * 17 * MIB)])
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        bench.prefill.may_answer.set()
        await expect_served(open_stream)
    await bench.router.expect_idle()


@pytest.mark.parametrize("sent", range(4))
async def test_a_stream_can_be_reset_at_any_point(bench: Bench, sent: int) -> None:
    bench.prefill.may_answer.set()
    async with bench.connect() as open_stream:
        call = open_stream()
        for message in GOOD[:sent]:
            await call.write(message)
            assert await call.read()
        call.cancel()
        await expect_served(open_stream)
    await bench.router.expect_idle()


async def test_streams_end_with_their_connection(bench: Bench) -> None:
    bench.prefill.may_answer.clear()
    async with bench.connect() as open_stream:
        calls = [open_stream() for _ in range(50)]
        for call in calls:
            await call.write(request_headers())
            await call.write(request_body())

        async def all_wait() -> None:
            assert bench.prefill.open == len(calls)

        await eventually(all_wait)
    await bench.router.expect_idle()

    async def none_waits() -> None:
        assert bench.prefill.open == 0

    bench.prefill.may_answer.set()
    await eventually(none_waits)
