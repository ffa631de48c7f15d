"""The HTTP/2 server of the gRPC port as gRPC's own client sees it, over a socket."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hpack import Encoder
from http2_peer import HEADERS, START, echo, frame_message
from waiting import WAIT_S, wait_until

from pdrouter.extproc.http2.frames import encode_frame
from pdrouter.extproc.http2.health import CHECK_PATH, WATCH_PATH, Health
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.rpc_server import RpcServer
from pdrouter.extproc.http2.stream import Stream

MIB = 2**20
SERVING, NOT_SERVING, UNKNOWN = (
    health_pb2.HealthCheckResponse.ServingStatus.Value(name)
    for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
)


async def fail(stream: Stream) -> None:
    await stream.read()
    raise ValueError("a defect")


async def hang(stream: Stream) -> None:
    await stream.write(b"begun")
    await asyncio.Event().wait()


@asynccontextmanager
async def serve(health: Health) -> AsyncIterator[tuple[RpcServer, str]]:
    handlers = {
        "/test/Echo": echo,
        "/test/Fail": fail,
        "/test/Hang": hang,
        CHECK_PATH: health.check,
        WATCH_PATH: health.watch,
    }
    server = RpcServer(handlers, Limits(message_bytes=8 * MIB, closing_s=0.1))
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop()


@asynccontextmanager
async def connect(address: str) -> AsyncIterator[Any]:
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


async def call(channel: Any, path: str, *messages: bytes) -> tuple[list[bytes], grpc.StatusCode]:
    """Send messages; return the answers and the status."""

    async def send() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    answers: list[bytes] = []
    stream = channel.stream_stream(path)(send(), timeout=WAIT_S)
    with suppress(grpc.aio.AioRpcError):
        while (answer := await stream.read()) is not grpc.aio.EOF:
            answers.append(answer)
    return answers, await stream.code()


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 100_000, 8 * MIB])
async def test_messages_of_all_sizes_come_back(size: int) -> None:
    async with serve(Health([])) as (_, address), connect(address) as channel:
        sent = [bytes([index]) * size for index in range(3)]
        assert await call(channel, "/test/Echo", *sent) == (sent, grpc.StatusCode.OK)


async def test_many_calls_at_once() -> None:
    async with serve(Health([])) as (server, address), connect(address) as channel:
        sent = [[bytes([index]) * 3_000] * 3 for index in range(200)]
        got = await asyncio.gather(*(call(channel, "/test/Echo", *each) for each in sent))
        assert got == [(each, grpc.StatusCode.OK) for each in sent]
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("path", "messages", "code"),
    [
        ("/test/Nothing", [b"x"], grpc.StatusCode.UNIMPLEMENTED),
        ("/test/Fail", [b"x"], grpc.StatusCode.UNKNOWN),
        ("/test/Echo", [bytes(8 * MIB + 1)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("/test/Echo", [], grpc.StatusCode.OK),
    ],
)
async def test_a_call_ends_with_its_status(
    path: str, messages: list[bytes], code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with serve(Health([])) as (_, address), connect(address) as channel:
        # While it still writes, grpcio may see the reset of the stream before the status.
        possible = {code} if code is grpc.StatusCode.OK else {code, grpc.StatusCode.INTERNAL}
        answers, found = await call(channel, path, *messages)
        assert not answers
        assert found in possible
        assert await call(channel, "/test/Echo", b"x") == ([b"x"], grpc.StatusCode.OK)


async def test_a_compressed_message_is_not_understood() -> None:
    async with serve(Health([])) as (_, address), connect(address) as channel:
        stream = channel.stream_stream("/test/Echo")(compression=grpc.Compression.Gzip)
        with suppress(grpc.aio.AioRpcError):
            await stream.write(bytes(1_000))
        assert await stream.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}


async def test_what_is_open_when_the_server_stops_is_unavailable() -> None:
    async with serve(Health([])) as (server, address), connect(address) as channel:
        stream = channel.stream_stream("/test/Hang")()
        assert await stream.read() == b"begun"
        await server.stop()
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_reads_nothing_holds_up_only_itself() -> None:
    async with serve(Health([])) as (server, address):
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(START + encode_frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff"))
        writer.write(encode_frame(8, 0, 0, (2**31 - 70_000).to_bytes(4)))
        writer.write(encode_frame(1, 4, 1, Encoder().encode(HEADERS)))
        message = frame_message(bytes(10_000))
        (connection,) = await _wait_for_connections(server)
        sent = 0
        while connection.window.writing:
            writer.write(encode_frame(0, 0, 1, message))
            await asyncio.wait_for(writer.drain(), WAIT_S)
            await asyncio.sleep(0)
            sent += 1
            assert sent < 10_000
        async with connect(address) as channel:
            assert await call(channel, "/test/Echo", b"x") == ([b"x"], grpc.StatusCode.OK)
        writer.close()


async def test_the_health_service_answers_and_tells_of_the_end() -> None:
    health = Health(["known"])
    async with serve(health) as (_, address), connect(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="known")
        assert (await stub.Check(request, timeout=WAIT_S)).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        stranger = stub.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await stranger.read()).status == UNKNOWN
        watch = stub.Watch(request)
        assert (await watch.read()).status == SERVING
        health.stop_serving()
        assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(request, timeout=WAIT_S)).status == NOT_SERVING


async def test_other_clients_than_grpcs_are_told_so() -> None:
    async with (
        serve(Health([])) as (_, address),
        httpx.AsyncClient(http1=False, http2=True, timeout=WAIT_S) as client,
    ):
        response = await client.post(f"http://{address}/test/Echo", json={})
        assert response.status_code == 415


async def _wait_for_connections(server: RpcServer) -> Any:
    await wait_until(lambda: len(server.connections) == 1)
    return server.connections
