"""TLS to engines: who is trusted, and what a failure of it says."""

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from authority import Authority, Pair
from loopback import Server, Talk, answer_always, answering, listen
from waiting import LONGER_S, WAIT_S

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.tls import EngineTls, EngineTlsRules
from pdrouter.openai.pieces import Pieces
from pdrouter.pem_files import CertificatesInvalid
from pdrouter.serving.engine_client import EngineClient

LIMITS = ClientLimits(connect_s=LONGER_S, response_s=LONGER_S, answer_bytes=64 * 1024)
NAME = "engines.test"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Whom a router trusts, and an engine that is trusted.

    Attributes:
        directory: where further ones may be written.
        authority: signs certificates.
        pair: an engine's.
        stranger: a certificate that another authority has signed.
    """

    directory: Path
    authority: Authority
    pair: Pair
    stranger: Pair

    @property
    def rules(self) -> EngineTlsRules:
        return EngineTlsRules(authorities=self.authority.pair.certificate)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority.create(directory, "authority")
    other = Authority.create(directory, "other")
    return Certificates(
        directory, authority, authority.sign(directory, NAME), other.sign(directory, "stranger")
    )


def serve(pair: Pair, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


async def post(client: EngineClient, address: str, *, plain: bool = False) -> EngineAnswer:
    async with asyncio.timeout(WAIT_S):
        return await client.post(
            address, "/v1/completions", {}, Pieces((b"{}",)), LONGER_S, plain=plain
        )


async def fail(
    rules: EngineTlsRules | None,
    tls: ssl.SSLContext | None,
    *,
    talk: Talk = answer_always,
    limits: ClientLimits = LIMITS,
) -> PostFailed:
    spoken = None if rules is None else EngineTls(rules)
    async with listen(talk, tls=tls) as server, EngineClient(limits, spoken) as client:
        with pytest.raises(PostFailed) as caught:
            await post(client, server.address)
        assert not server.requests
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("name", [None, NAME])
async def test_an_engine_is_trusted_by_its_address_or_by_the_name_of_all(
    host: str, name: str | None, certificates: Certificates
) -> None:
    tls = EngineTls(replace(certificates.rules, name=name))
    async with (
        listen(answer_always, tls=serve(certificates.pair), host=host) as server,
        EngineClient(LIMITS, tls) as client,
    ):
        for _ in range(2):
            assert (await post(client, server.address)).status == 200
        assert server.connections == 1
        assert server.requests[0].headers["host"] == server.address


async def test_the_name_that_is_expected_is_the_one_that_is_asked_for(
    certificates: Certificates,
) -> None:
    asked: list[str | None] = []
    context = serve(certificates.pair)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    tls = EngineTls(replace(certificates.rules, name=NAME))
    async with (
        listen(answer_always, tls=context) as server,
        EngineClient(LIMITS, tls) as client,
    ):
        await post(client, server.address)
    assert asked == [NAME]


async def test_a_certificate_that_nobody_vouches_for_is_a_failure_to_connect(
    certificates: Certificates,
) -> None:
    failed = await fail(certificates.rules, serve(certificates.stranger))
    assert (failed.kind, failed.stale) == (FailureKind.CONNECT, False)
    assert "its certificate is not trusted: unable to get local issuer" in str(failed)
    # The system's own authorities do not, either.
    failed = await fail(EngineTlsRules(), serve(certificates.pair))
    assert "its certificate is not trusted" in str(failed)


async def test_a_certificate_of_another_name_is_a_failure_to_connect(
    certificates: Certificates,
) -> None:
    rules = replace(certificates.rules, name="elsewhere.test")
    failed = await fail(rules, serve(certificates.pair))
    assert failed.kind is FailureKind.CONNECT
    assert "certificate is not valid for 'elsewhere.test'" in str(failed)


async def test_who_checks_nothing_speaks_to_anybody(certificates: Certificates) -> None:
    tls = EngineTls(EngineTlsRules(verified=False))
    async with (
        listen(answer_always, tls=serve(certificates.stranger)) as server,
        EngineClient(LIMITS, tls) as client,
    ):
        assert (await post(client, server.address)).status == 200


async def test_an_engine_may_want_to_know_who_asks(certificates: Certificates) -> None:
    own = certificates.authority.sign(certificates.directory, "router")
    wanted = serve(certificates.pair, certificates.authority.pair.certificate)
    tls = EngineTls(replace(certificates.rules, certificate=own.certificate, key=own.key))
    async with listen(answer_always, tls=wanted) as server, EngineClient(LIMITS, tls) as client:
        assert (await post(client, server.address)).status == 200
    # For the client, the handshake is over by then: not all servers say why they hang up.
    failed = await fail(certificates.rules, wanted)
    assert failed.kind is FailureKind.TRANSPORT


async def test_an_engine_may_say_why_it_refuses_a_connection(certificates: Certificates) -> None:
    wanted = serve(certificates.pair, certificates.authority.pair.certificate)

    def refuse(listener: socket.socket) -> None:
        listener.settimeout(WAIT_S)
        connection, _ = listener.accept()
        spoken = wanted.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            spoken.do_handshake()
        # Were the request not read, its end would overtake what was said.
        with socket.socket(fileno=spoken.detach()) as raw:
            raw.settimeout(WAIT_S)
            raw.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while raw.recv(4096):
                    pass

    tls = EngineTls(certificates.rules)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = "{}:{}".format(*listener.getsockname())
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
        async with EngineClient(LIMITS, tls) as client:
            with pytest.raises(PostFailed, match=r"refuses TLS .* certificate required") as caught:
                await post(client, address)
        await refusing
    assert (caught.value.kind, caught.value.stale) == (FailureKind.TRANSPORT, False)


async def test_an_engine_without_tls_is_a_failure_to_connect(certificates: Certificates) -> None:
    async def complain(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        del server
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    failed = await fail(certificates.rules, None, talk=complain)
    assert failed.kind is FailureKind.CONNECT
    assert "it does not speak TLS (PDROUTER_ENGINE_TLS)" in str(failed)


async def test_a_plain_request_to_an_engine_with_tls_is_a_transport_failure(
    certificates: Certificates,
) -> None:
    failed = await fail(None, serve(certificates.pair))
    assert failed.kind is FailureKind.TRANSPORT


async def test_what_is_no_engine_is_spoken_to_in_plain_text(certificates: Certificates) -> None:
    tls = EngineTls(certificates.rules)
    async with listen(answer_always) as server, EngineClient(LIMITS, tls) as client:
        assert (await post(client, server.address, plain=True)).status == 200


async def test_a_handshake_that_stands_still_is_given_up(certificates: Certificates) -> None:
    async def stand_still(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        del server, writer
        with suppress(ConnectionError):
            await reader.read(-1)

    limits = replace(LIMITS, connect_s=0.1)
    failed = await fail(certificates.rules, None, talk=stand_still, limits=limits)
    assert failed.kind is FailureKind.CONNECT
    assert "in time" in str(failed)


async def test_an_authority_that_is_replaced_counts_for_new_connections(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes((certificates.directory / "other.pem").read_bytes())
    once = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    tls = EngineTls(EngineTlsRules(authorities=trusted, name=NAME))
    async with (
        listen(once, tls=serve(certificates.pair)) as server,
        EngineClient(LIMITS, tls) as client,
    ):
        with pytest.raises(PostFailed, match="not trusted"):
            await post(client, server.address)
        with caplog.at_level(logging.INFO):
            trusted.write_bytes(certificates.authority.pair.certificate.read_bytes() + b"\n")
            assert (await post(client, server.address)).status == 200
            trusted.write_text("half a fi")
            assert (await post(client, server.address)).status == 200
    said = [record.getMessage() for record in caplog.records if record.name == "pdrouter.pem_files"]
    assert said[0] == "TLS certificates were replaced"
    assert said[1].startswith("TLS certificates are broken, the last good ones stay in use")


def test_files_that_cannot_be_used_are_named(certificates: Certificates, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(CertificatesInvalid, match=r"missing\.pem"):
        EngineTls(EngineTlsRules(authorities=missing))
    own, other = certificates.pair, certificates.stranger
    with pytest.raises(CertificatesInvalid, match="mismatch"):
        EngineTls(EngineTlsRules(certificate=own.certificate, key=other.key))
