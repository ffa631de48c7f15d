"""TLS on the gRPC port: certificates, their replacement, and who may connect."""

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from authority import Authority, Pair
from expectations import chat, eventually
from failures import CHAT
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import RouterProcess, run_installation

HOST = "127.0.0.1"
TIMEOUT_S = 10.0
ENDPOINTS = 'models: [{name: demo, endpoints: ["127.0.0.1:9"]}]'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path, "authority")


@pytest.fixture
def in_use(tmp_path: Path, authority: Authority) -> Pair:
    """The files that the router is told of."""
    return authority.sign(tmp_path, "first")


@pytest.fixture
def environment(tmp_path: Path, in_use: Pair) -> Mapping[str, str]:
    file = tmp_path / "endpoints.yaml"
    file.write_text(ENDPOINTS)
    return {
        "PDROUTER_ENDPOINTS": str(file),
        "PDROUTER_TLS_CERTIFICATE": str(in_use.certificate),
        "PDROUTER_TLS_KEY": str(in_use.key),
    }


async def read_name(router: RouterProcess, authority: Authority) -> str:
    """Connect anew; return the name in the router's certificate."""
    context = ssl.create_default_context(cafile=authority.pair.certificate)
    context.set_alpn_protocols(["h2"])
    async with asyncio.timeout(TIMEOUT_S):
        address = router.grpc_address
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    certificate: dict[str, Any] = writer.get_extra_info("peercert")
    writer.close()
    (((_, name),),) = certificate["subject"]
    return str(name)


async def is_serving(router: RouterProcess, credentials: grpc.ChannelCredentials | None) -> bool:
    """Ask a router's health service, over a new connection."""
    address, local = str(router.grpc_address), [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options=local)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=local)
    )
    async with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def trust(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    """Return credentials of a client that trusts an authority, and may have a certificate."""
    return grpc.ssl_channel_credentials(
        authority.pair.certificate.read_bytes(),
        None if client is None else client.key.read_bytes(),
        None if client is None else client.certificate.read_bytes(),
    )


async def test_only_clients_that_speak_tls_and_trust_the_certificate_are_served(
    environment: Mapping[str, str], authority: Authority, tmp_path: Path
) -> None:
    async with RouterProcess.serving(environment) as router:
        assert await is_serving(router, trust(authority))
        assert not await is_serving(router, trust(Authority.create(tmp_path, "stranger")))
        assert not await is_serving(router, None)
        assert await is_serving(router, trust(authority))


async def test_a_replaced_certificate_is_used_for_new_connections(
    environment: Mapping[str, str], authority: Authority, in_use: Pair, tmp_path: Path
) -> None:
    async with RouterProcess.serving(environment) as router:
        address = str(router.grpc_address)
        async with grpc.aio.secure_channel(address, trust(authority)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest())
            assert await read_name(router, authority) == "first"
            authority.sign(tmp_path, "second").copy_to(in_use)
            assert await read_name(router, authority) == "second"
            # A connection lives on with the certificate that it began with.
            await health.Check(health_pb2.HealthCheckRequest())
        assert await is_serving(router, trust(authority))


async def test_broken_files_leave_the_last_good_certificate_in_use(
    environment: Mapping[str, str], authority: Authority, in_use: Pair, tmp_path: Path
) -> None:
    second = authority.sign(tmp_path, "second")
    async with RouterProcess.serving(environment) as router:
        for key in (b"no PEM", b"", second.key.read_bytes()):
            # The last one fits the certificate that is about to come.
            in_use.key.write_bytes(key)
            assert await read_name(router, authority) == "first"
        in_use.key.unlink()
        assert await read_name(router, authority) == "first"
        errors = [line for line in router.lines if line["level"] == "error"]
        assert all(str(in_use.key) in line["event"] for line in errors)

        second.copy_to(in_use)
        assert await read_name(router, authority) == "second"

        async def told() -> None:
            assert len([line for line in router.lines if line["level"] == "error"]) == 4

        await eventually(told)


async def test_clients_can_be_asked_for_a_certificate(
    environment: Mapping[str, str], authority: Authority, tmp_path: Path
) -> None:
    of_clients = Authority.create(tmp_path, "clients")
    of_strangers = Authority.create(tmp_path, "stranger")
    stranger = of_strangers.sign(tmp_path, "strange-client")
    known = of_clients.sign(tmp_path, "client")
    ca_file = tmp_path / "client-ca.pem"
    ca_file.write_bytes(of_clients.pair.certificate.read_bytes())
    environment = {**environment, "PDROUTER_TLS_CLIENT_CA": str(ca_file)}
    async with RouterProcess.serving(environment) as router:
        assert await is_serving(router, trust(authority, known))
        assert not await is_serving(router, trust(authority))
        assert not await is_serving(router, trust(authority, stranger))
        # Who was trusted before is not, once the file says so.
        ca_file.write_bytes(of_strangers.pair.certificate.read_bytes())
        assert await is_serving(router, trust(authority, stranger))
        assert not await is_serving(router, trust(authority, known))
        assert not await is_serving(router, trust(authority))


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_a_certificate_that_cannot_be_used_stops_the_start(
    environment: Mapping[str, str], in_use: Pair, content: bytes | None
) -> None:
    in_use.certificate.unlink()
    if content is not None:
        in_use.certificate.write_bytes(content)
    async with RouterProcess.start(environment) as router:
        assert await router.wait() == 1
        (line,) = router.errors.splitlines()
        assert line.startswith("pdrouter: ")
        assert str(in_use.certificate) in line


async def test_envoy_speaks_tls_to_a_router_that_it_can_trust(
    environment: Mapping[str, str], authority: Authority, tmp_path: Path
) -> None:
    tls = {name: value for name, value in environment.items() if "TLS" in name}
    async with (
        run_installation(tls, router_ca_file=authority.pair.certificate) as installation,
        installation.connect() as client,
    ):
        response = await client.post(CHAT, json=chat())
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "disaggregated"

    stranger = Authority.create(tmp_path, "stranger").pair.certificate
    async with (
        run_installation(tls, router_ca_file=stranger) as installation,
        installation.connect() as client,
    ):
        response = await client.post(CHAT, json=chat())
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "router_unavailable"
        # The router has asked it for its models.
        assert {request.path for request in installation.prefill.requests} <= {"/v1/models"}
