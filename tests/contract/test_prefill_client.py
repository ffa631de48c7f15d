"""One POST to a prefill pod, against real servers: what it sends, and what may go wrong.

All of it in plain text, and in TLS.
"""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import loopback
import pytest
from authority import Authority
from hypothesis import given
from hypothesis import strategies as st
from loopback import (
    OK,
    Received,
    Server,
    Talk,
    answer_always,
    answering,
    hang,
    reset,
    trickle,
)
from waiting import LONGER_S, WAIT_S, wait_until

from pdrouter.engine_http.answers import MAX_INTERIM_ANSWERS, AnswerReader, EngineAnswer
from pdrouter.engine_http.client import SURELY_OPEN_S, ClientLimits, HttpClient
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engine_http.tls import EngineTls, EngineTlsRules
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.engine_client import EngineClient

MIB = 1024 * 1024
Posting: TypeAlias = asyncio.Task[EngineAnswer]
LIMITS = ClientLimits(connect_s=LONGER_S, response_s=LONGER_S, answer_bytes=64 * 1024)


@dataclass(frozen=True, slots=True)
class Speech:
    """How client and server speak to each other."""

    server: ssl.SSLContext | None = None
    client: EngineTls | None = None


spoken = Speech()


@pytest.fixture(params=["plain", "tls"], autouse=True, scope="module")
def speech(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    global spoken  # noqa: PLW0603 - every server and every client of this module goes by it
    if request.param == "tls":
        directory = tmp_path_factory.mktemp("certificates")
        authority = Authority.create(directory, "authority")
        pair = authority.sign(directory, "engine")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        spoken = Speech(context, EngineTls(EngineTlsRules(authorities=authority.pair.certificate)))
    yield
    spoken = Speech()


def listen(talk: Talk) -> AbstractAsyncContextManager[Server]:
    return loopback.listen(talk, tls=spoken.server)


def create_client(limits: ClientLimits) -> EngineClient:
    return EngineClient(limits, spoken.client)


async def post(
    client: EngineClient,
    address: str,
    *,
    path: str = "/v1/completions",
    headers: dict[str, str] | None = None,
    body: bytes = b"{}",
    total_s: float = LONGER_S,
    once: bool = True,
    fresh: bool = False,
) -> EngineAnswer:
    given = {"content-type": "application/json"} if headers is None else headers
    async with asyncio.timeout(WAIT_S):
        return await client.post(
            address, path, given, Pieces((body,)), total_s, once=once, fresh=fresh
        )


async def fail(
    talk: Talk, *, limits: ClientLimits = LIMITS, total_s: float = LONGER_S
) -> PostFailed:
    async with listen(talk) as server, create_client(limits) as client:
        with pytest.raises(PostFailed) as caught:
            await post(client, server.address, total_s=total_s)
        # A connection that failed is not kept.
        await wait_until(server.closed.is_set)
    return caught.value


def limit(**changes: float) -> ClientLimits:
    return ClientLimits(
        connect_s=changes.get("connect_s", LONGER_S),
        response_s=changes.get("response_s", LONGER_S),
        answer_bytes=int(changes.get("answer_bytes", 64 * 1024)),
    )


# --- What goes over the wire ---


async def test_a_request_carries_the_given_headers_and_no_others() -> None:
    headers = {
        "content-type": "application/json",
        "authorization": "Bearer k",
        "x-request-id": "r-1",
        "traceparent": "00-1-2-03",
        "x-utf-8": "é",
    }
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        await post(client, server.address, headers=headers, body=b'{"a":1}')
    request = server.requests[0]
    assert request.line == "POST /v1/completions HTTP/1.1"
    assert request.headers == headers | {
        "host": server.address,
        "user-agent": "pdrouter",
        "content-length": "7",
    }
    assert request.body == b'{"a":1}'


@pytest.mark.parametrize(
    "path", ["/v1/messages?beta=true", "/a?b=%2F%20+&c=%e9", "/a%2fb", "/a?q=é"]
)
async def test_path_and_query_go_out_as_they_came(path: str) -> None:
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        await post(client, server.address, path=path)
    assert server.requests[0].line == f"POST {path} HTTP/1.1"


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1])
async def test_bodies_of_any_size_go_out_whole_and_with_their_length(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        await post(client, server.address, body=body[:size])
    request = server.requests[0]
    assert request.body == body[:size]
    assert request.headers["content-length"] == str(size)
    assert "transfer-encoding" not in request.headers
    assert "expect" not in request.headers


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        assert (await post(client, server.address)).status == 200


async def test_cookies_are_not_kept_for_the_next_client() -> None:
    answer = b"HTTP/1.1 200 OK\r\nset-cookie: a=b; path=/\r\ncontent-length: 0\r\n\r\n"
    async with listen(answering(answer, OK)) as server, create_client(LIMITS) as client:
        await post(client, server.address)
        await post(client, server.address)
    assert len(server.requests) == 2
    assert "cookie" not in server.requests[1].headers


# --- Answers ---


@pytest.mark.parametrize("status", [200, 201, 302, 400, 404, 422, 429, 500, 503])
async def test_an_answer_of_any_status_is_an_answer(status: int) -> None:
    answer = (
        f"HTTP/1.1 {status} Whatever\r\nLocation: /elsewhere\r\nX-Mixed-Case: Kept\r\n"
        "content-length: 5\r\n\r\n"
    ).encode() + b"{\xff\x00}\n"
    async with listen(answering(answer)) as server, create_client(LIMITS) as client:
        got = await post(client, server.address)
    assert (got.status, got.body) == (status, b"{\xff\x00}\n")
    assert got.headers == {"location": "/elsewhere", "x-mixed-case": "Kept", "content-length": "5"}
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
    ids=["chunked", "until the end", "http/1.0", "after a continue"],
)
async def test_bodies_of_any_framing_are_read(answer: bytes) -> None:
    async with listen(answering(answer)) as server, create_client(LIMITS) as client:
        assert (await post(client, server.address)).body == b"{}"


@pytest.mark.parametrize("reads_on", [True, False])
async def test_an_answer_may_come_before_the_body_was_read(*, reads_on: bool) -> None:
    async def refuse_early(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        del server
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        if reads_on:
            await reader.read()
        else:
            writer.close()  # The kernel resets the connection: not all was read.

    async with listen(refuse_early) as server, create_client(LIMITS) as client:
        assert (await post(client, server.address, body=b"x" * 8 * MIB)).status == 413


@pytest.mark.parametrize("size", [0, 1, 1000])
async def test_an_answer_up_to_the_limit_is_read(size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (size, b"x" * size)
    async with (
        listen(answering(answer)) as server,
        create_client(limit(answer_bytes=1000)) as client,
    ):
        assert (await post(client, server.address)).body == b"x" * size


_ZEROS = gzip.compress(bytes(MIB))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1001,
    ],
    ids=["by one byte", "announced", "chunked"],
)
async def test_an_answer_above_the_limit_is_a_failure(answer: bytes) -> None:
    limits = limit(answer_bytes=1000)
    async with listen(answering(answer)) as server, create_client(limits) as client:
        with pytest.raises(PostFailed, match="larger than 1000 bytes") as caught:
            await post(client, server.address)
    assert (caught.value.kind, caught.value.stale) == (FailureKind.TOO_LARGE, False)


async def test_an_answer_that_is_compressed_unasked_is_not_unpacked() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
    talk = answering(head % len(_ZEROS) + _ZEROS)
    async with listen(talk) as server, create_client(LIMITS) as client:
        with pytest.raises(PostFailed, match="compressed") as caught:
            await post(client, server.address)
    assert caught.value.kind is FailureKind.TRANSPORT


async def test_an_answer_above_the_limit_is_not_read_to_its_end() -> None:
    failed = await fail(trickle, limits=limit(answer_bytes=3))
    assert failed.kind is FailureKind.TOO_LARGE


@pytest.mark.parametrize(("status", "drained"), [(b"200 OK", True), (b"500 No", False)])
async def test_an_answer_that_is_read_for_its_end_may_be_of_any_size(
    status: bytes, *, drained: bool
) -> None:
    size = 3_000_000
    answer = b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n" % (status, size) + b"x" * size
    limits = limit(answer_bytes=1000)
    async with listen(answering(answer, OK)) as server, create_client(limits) as client:
        posting = client.post(
            server.address, "/", {}, Pieces((b"{}",)), WAIT_S, progress=PostProgress(drains=True)
        )
        if drained:
            # Its beginning is kept, and the connection is as good as new.
            assert 1000 < len((await posting).body) < size
            await post(client, server.address)
            assert server.connections == 1
        else:
            with pytest.raises(PostFailed, match="larger than 1000 bytes"):
                await posting


# --- Connections ---


async def test_a_connection_is_used_again() -> None:
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        for _ in range(3):
            await post(client, server.address)
    assert (len(server.requests), server.connections) == (3, 1)


async def test_requests_at_the_same_time_do_not_wait_for_each_other() -> None:
    both_came = asyncio.Event()

    async def wait_for_another(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)
        if len(server.requests) == 60:
            both_came.set()
        await both_came.wait()
        writer.write(OK)

    async with listen(wait_for_another) as server, create_client(LIMITS) as client:
        await asyncio.gather(*(post(client, server.address) for _ in range(60)))
    assert server.connections == 60


async def test_connections_are_closed_with_the_client() -> None:
    async with listen(answer_always) as server:
        async with create_client(LIMITS) as client:
            await post(client, server.address)
            assert not server.closed.is_set()
        await wait_until(server.closed.is_set)


async def test_a_client_that_is_not_open_is_an_error() -> None:
    client = create_client(LIMITS)
    with pytest.raises(RuntimeError, match="not open"):
        await post(client, "127.0.0.1:9")
    async with client:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await post(client, "127.0.0.1:9")


@asynccontextmanager
async def watching(address: str, size: int = 2) -> AsyncIterator[tuple[PostProgress, Posting]]:
    progress = PostProgress()
    async with create_client(LIMITS) as client:
        posting = asyncio.create_task(
            client.post(address, "/", {}, Pieces((b"x" * size,)), WAIT_S, progress=progress)
        )
        yield progress, posting
        posting.cancel()


@pytest.mark.parametrize("size", [2, MIB])
async def test_it_is_told_that_a_request_is_written(size: int) -> None:
    async with listen(hang) as server, watching(server.address, size) as (progress, _):
        await asyncio.wait_for(progress.sent.wait(), WAIT_S)
        await wait_until(lambda: bool(server.requests))
        assert not progress.answered.is_set()


async def test_a_request_is_not_written_before_all_of_it_is() -> None:
    go_on = asyncio.Event()

    async def read_late(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        server.requests.append(Received("", {}, b""))
        await go_on.wait()
        await reader.read()
        del writer

    size = 64 * MIB
    async with listen(read_late) as server, watching(server.address, size) as (progress, _):
        await wait_until(lambda: bool(server.requests))
        await asyncio.sleep(0.05)
        assert not progress.sent.is_set()
        go_on.set()
        await asyncio.wait_for(progress.sent.wait(), WAIT_S)


async def test_it_is_told_of_the_head_before_the_rest_of_an_answer() -> None:
    async with listen(trickle) as server, watching(server.address) as (progress, posting):
        await asyncio.wait_for(progress.answered.wait(), WAIT_S)
        assert (progress.status, posting.done()) == (200, False)


async def test_a_request_that_no_connection_takes_is_not_written() -> None:
    async with listen(hang) as server:
        pass
    async with watching(server.address) as (progress, posting):
        with pytest.raises(PostFailed):
            await posting
        assert not progress.sent.is_set()


async def test_a_request_to_a_pod_that_then_resets_was_written() -> None:
    async with listen(reset) as server, watching(server.address) as (progress, posting):
        with pytest.raises(PostFailed):
            await posting
        assert progress.sent.is_set()
        assert not progress.answered.is_set()


async def test_cancelling_closes_the_connection() -> None:
    async with listen(hang) as server, create_client(LIMITS) as client:
        task = asyncio.create_task(post(client, server.address))
        await wait_until(lambda: bool(server.requests))
        task.cancel()
        await wait_until(server.closed.is_set)
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelling_while_the_answer_comes_closes_the_connection() -> None:
    async with listen(trickle) as server, create_client(limit(answer_bytes=10**9)) as client:
        task = asyncio.create_task(post(client, server.address))
        await wait_until(lambda: bool(server.requests))
        await asyncio.sleep(0.05)
        task.cancel()
        await wait_until(server.closed.is_set)
        with pytest.raises(asyncio.CancelledError):
            await task


# --- Failures ---


async def test_a_port_that_nobody_listens_on_is_a_failure_to_connect() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with create_client(LIMITS) as client:
        with pytest.raises(PostFailed) as caught:
            await post(client, f"127.0.0.1:{port}")
    assert (caught.value.kind, caught.value.stale) == (FailureKind.CONNECT, False)


@pytest.mark.parametrize(
    ("connect_s", "total_s", "kind"), [(0.1, LONGER_S, "connect"), (LONGER_S, 0.1, "timeout")]
)
async def test_a_host_that_does_not_answer_is_given_up(
    connect_s: float, total_s: float, kind: str
) -> None:
    with closing(socket.socket()) as listener, closing(socket.socket()) as first:
        # Linux lets one connection more than the backlog wait, and ignores the next.
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        async with create_client(limit(connect_s=connect_s)) as client:
            with pytest.raises(PostFailed) as caught:
                await post(client, "{}:{}".format(*listener.getsockname()), total_s=total_s)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "talk",
    [
        reset,
        answering(b""),
        answering(b"HTTP/1.1 200 OK\r\ncontent-le"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
        answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"),
        answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"),
        answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}"),
    ],
    ids=[
        "reset",
        "closed",
        "half a head",
        "half a body",
        "half a chunk",
        "bad chunk",
        "another protocol",
        "not packed",
    ],
)
async def test_an_answer_that_breaks_off_or_makes_no_sense_is_a_transport_failure(
    talk: Talk,
) -> None:
    failed = await fail(talk)
    assert (failed.kind, failed.stale) == (FailureKind.TRANSPORT, False)
    assert str(failed)


@pytest.mark.parametrize(
    "end", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", b"junk\r\n\r\n"]
)
async def test_only_a_used_connection_that_ends_without_any_answer_is_stale(end: bytes) -> None:
    async with listen(answering(OK, end)) as server, create_client(LIMITS) as client:
        await post(client, server.address)
        with pytest.raises(PostFailed) as caught:
            await post(client, server.address)
    assert server.connections == 1
    assert caught.value.kind is FailureKind.TRANSPORT
    assert caught.value.stale is (end == b"")


async def test_a_request_that_may_be_sent_again_is_where_the_connection_was_stale() -> None:
    async with listen(answering(OK, b"")) as server, create_client(LIMITS) as client:
        for _ in range(2):
            assert (await post(client, server.address, once=False)).status == 200
    assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("open_s", [SURELY_OPEN_S, 0.0])
async def test_what_is_sent_once_in_any_case_takes_no_connection_that_may_be_closed(
    open_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdrouter.engine_http.client.SURELY_OPEN_S", open_s)
    async with listen(answer_always) as server, create_client(LIMITS) as client:
        for fresh in (False, True, False):
            await post(client, server.address, fresh=fresh)
    # The one that was idle for too long is kept for the others.
    assert server.connections == (1 if open_s else 2)


async def test_connections_that_were_idle_for_long_are_closed_in_turns() -> None:
    async with listen(answer_always) as server:
        with closing(HttpClient(LIMITS, LONGER_S, spoken.client)) as client:
            await asyncio.gather(*(_get(client, server.address) for _ in range(80)))
            assert server.connections == 80
            client._keepalive_s = 0.0
            client._sweep()
            by_turn = []
            while before := len(client._open):
                await asyncio.sleep(0)
                by_turn.append(before - len(client._open))
    assert sum(by_turn) == 80
    assert max(by_turn) <= 16


async def _get(client: HttpClient, address: str) -> None:
    await client.request("GET", address, "/", {}, body=None, total_s=LONGER_S)


async def test_a_used_connection_that_is_reset_is_stale() -> None:
    async def talk(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await answering(OK)(server, reader, writer)
        await reset(server, reader, writer)

    async with listen(talk) as server, create_client(LIMITS) as client:
        await post(client, server.address)
        with pytest.raises(PostFailed) as caught:
            await post(client, server.address)
    assert (caught.value.kind, caught.value.stale) == (FailureKind.TRANSPORT, True)


@pytest.mark.parametrize(
    ("talk", "response_s", "total_s"),
    [(hang, 0.1, LONGER_S), (hang, LONGER_S, 0.1), (trickle, LONGER_S, 0.2)],
    ids=["no answer", "no answer in all", "a slow answer"],
)
async def test_a_deadline_ends_the_request_and_its_connection(
    talk: Talk, response_s: float, total_s: float
) -> None:
    failed = await fail(talk, limits=limit(response_s=response_s), total_s=total_s)
    assert (failed.kind, failed.stale) == (FailureKind.TIMEOUT, False)


async def test_an_answer_that_keeps_coming_is_not_late() -> None:
    async def talk(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.2)
            writer.write(b" ")

    async with listen(talk) as server, create_client(limit(response_s=1.0)) as client:
        assert (await post(client, server.address)).body == b" " * 8


# --- Interim answers ---


@pytest.mark.parametrize("count", [1, MAX_INTERIM_ANSWERS])
async def test_a_few_interim_answers_are_passed_over(count: int) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * count
    async with listen(answering(interim + OK, interim + OK)) as server:
        async with create_client(LIMITS) as client:
            for _ in range(2):
                assert (await post(client, server.address)).status == 200
        assert server.connections == 1


@pytest.mark.parametrize("line", [b"100 Continue", b"103 Early Hints", b"199 x"])
@pytest.mark.parametrize("count", [MAX_INTERIM_ANSWERS + 1, 50_000])
async def test_interim_answers_without_end_are_no_answer(line: bytes, count: int) -> None:
    interim = b"HTTP/1.1 %s\r\n\r\n" % line
    failed = await fail(answering(interim * count + OK))
    assert failed.kind is FailureKind.TRANSPORT
    assert "interim" in str(failed)
    assert not failed.stale


async def test_few_interim_answers_are_read_beyond_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[AnswerReader] = []
    take_head = AnswerReader.on_headers_complete

    def note(self: AnswerReader) -> None:
        read.append(self)
        take_head(self)

    monkeypatch.setattr(AnswerReader, "on_headers_complete", note)
    await fail(answering(b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000))
    assert len(read) == MAX_INTERIM_ANSWERS + 1


# --- Chunks ---

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def cut(body: bytes, size: int) -> bytes:
    """Return a body in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(("length", "size"), [(60_000, 64), (60_000, 8_192), (50, 1)])
async def test_an_answer_may_come_in_chunks(length: int, size: int) -> None:
    body = b"x" * length
    answer = answering(CHUNKED + cut(body, size))
    async with listen(answer) as server, create_client(LIMITS) as client:
        assert (await post(client, server.address)).body == body


@pytest.mark.parametrize("size", [1, 4])
async def test_an_answer_in_chunks_of_a_few_bytes_is_none(size: int) -> None:
    failed = await fail(answering(CHUNKED + cut(b"x" * 60_000, size)))
    assert failed.kind is FailureKind.TRANSPORT
    assert "chunks" in str(failed)


# --- What comes beside an answer ---

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: first\r\n\r\n{}"


@pytest.mark.parametrize(
    "rest",
    [
        b"HTTP/1.1 500 No\r\ncontent-length: 9\r\nx-a: second\r\n\r\nabc",
        b"HTTP/1.1 500 No\r\nx-a: seco",
        b"H",
        b"garbage",
    ],
)
async def test_what_comes_behind_an_answer_is_nobodys(rest: bytes) -> None:
    async with listen(answering(ANSWER + rest, OK)) as server, create_client(LIMITS) as client:
        answer = await post(client, server.address)
        assert (answer.status, answer.headers["x-a"], answer.body) == (200, "first", b"{}")
        # The next request does not get what was said before it was sent: it has another connection.
        assert (await post(client, server.address)).headers["x-a"] == "first"
    assert server.connections == 2


async def test_trailers_change_no_header() -> None:
    answer = CHUNKED.replace(b"\r\n\r\n", b"\r\nx-a: head\r\n\r\n")
    talk = answering(answer + b"2\r\n{}\r\n0\r\nx-a: trailer\r\nx-b: trailer\r\n\r\n")
    async with listen(talk) as server, create_client(LIMITS) as client:
        got = await post(client, server.address)
    assert (got.body, got.headers) == (b"{}", {"transfer-encoding": "chunked", "x-a": "head"})


async def test_answers_on_one_connection_have_nothing_of_each_other() -> None:
    size = LIMITS.answer_bytes
    answers = [
        CHUNKED + b"1\r\na\r\n0\r\nx-a: trailer\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nx-b: interim\r\n\r\n" + OK,
        CHUNKED + cut(b"b" * size, 16).removesuffix(b"\r\n") + b"x-c: %s\r\n\r\n" % (b"c" * 60_000),
        b"HTTP/1.1 204 No Content\r\nx-d: d\r\n\r\n",
        b"HTTP/1.1 201 Created\r\ncontent-length: %d\r\n\r\n" % size + b"e" * size,
    ]
    async with listen(answering(*answers)) as server, create_client(LIMITS) as client:
        got = [await post(client, server.address) for _ in answers]
    assert server.connections == 1
    assert [(each.status, len(each.body), each.headers) for each in got] == [
        (200, 1, {"transfer-encoding": "chunked"}),
        (200, 2, {"content-length": "2"}),
        (200, size, {"transfer-encoding": "chunked"}),
        (204, 0, {"x-d": "d"}),
        (201, size, {"content-length": str(size)}),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * MIB,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
        CHUNKED + b"0\r\nx: " + b"a" * MIB,
        CHUNKED + b"0\r\n" + b"x: y\r\n" * 100_000,
        CHUNKED + b"1;" + b"a" * MIB,
    ],
    ids=["a header", "headers", "a trailer", "trailers", "an extension"],
)
async def test_what_has_no_end_is_no_answer(answer: bytes) -> None:
    failed = await fail(answering(answer))
    assert failed.kind is FailureKind.TRANSPORT
    assert "no end" in str(failed)


@given(
    st.lists(
        st.sampled_from(
            (
                ANSWER,
                OK,
                CHUNKED,
                b"2\r\n{}\r\n",
                b"0\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 204 No\r\n\r\n",
                b"connection: close\r\n",
                b"x: y\r\n",
                b"\r\n",
            )
        )
        | st.binary(max_size=50),
        max_size=12,
    ),
    st.lists(st.integers(0, 2**12), max_size=8),
)
def test_whatever_comes_is_an_answer_or_a_failure(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    reader = AnswerReader(100)
    try:
        for start, end in pairwise(places):
            reader.feed(data[start:end])
            if reader.answer is not None:
                break
    except PostFailed:
        assert reader.answer is None
    if reader.end():
        assert reader.answer is not None
        assert 200 <= reader.answer.status < 1000
        assert len(reader.answer.body) <= 100
