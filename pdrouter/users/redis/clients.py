"""Clients of Redis or Valkey: of one server, of what sentinels watch, of a cluster."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection
from redis.backoff import NoBackoff

from pdrouter.settings import Settings
from pdrouter.settings.key_files import read_key
from pdrouter.settings.redis_url import RedisUrl, Topology

MAX_CONNECTIONS = 20
"""To one server; there are fewer calls at a time."""

_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        # What has failed is not tried again: it may have been done.
        "retry": Retry(NoBackoff(), 0),
        # The second protocol needs no greeting, and the client's name no command of its own.
        "protocol": 2,
        "driver_info": None,
        # The time is taken by who calls.
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
)


@dataclass(frozen=True, slots=True)
class RedisFiles:
    """Files that say who asks, and whom to believe; None for none.

    Attributes:
        password: password.
        sentinel_password: password of the sentinels.
        ca: certificates that sign the servers'; None for those that the system trusts.
        certificate: certificate that is shown to servers.
        key: private key of that certificate.
    """

    password: Path | None = None
    sentinel_password: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def find_files(settings: Settings) -> RedisFiles:
    """Return the files that the settings name."""
    return RedisFiles(
        settings.redis_password_file,
        settings.redis_sentinel_password_file,
        settings.redis_ca,
        settings.redis_certificate,
        settings.redis_key,
    )


@dataclass(frozen=True, slots=True)
class _Access:
    """What is in the files now."""

    password: str
    sentinel_password: str
    connection: type[Connection]


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to a server.

    Attributes:
        redis: sends commands to it.
        sentinels: whom that asks where it is.
    """

    redis: Redis | RedisCluster
    sentinels: tuple[Redis, ...] = ()

    async def close(self) -> None:
        """Close all connections, also those that are in use."""
        for each in (self.redis, *self.sentinels):
            await each.aclose()


async def create_client(url: RedisUrl, files: RedisFiles) -> Client:
    """Return a client that has not connected yet, with what is in the files now.

    Raises:
        OSError: a certificate cannot be used.
        SettingInvalid: there is no password in its file.
    """
    # To read the certificates that the system trusts takes 15 ms.
    access = await asyncio.to_thread(_read, url, files)
    match url.topology:
        case Topology.SINGLE:
            (host, port), *_ = url.addresses
            return Client(Redis.from_pool(_create_pool(url, access, host, port)))
        case Topology.SENTINEL:
            return _ask_sentinels(url, access)
        case Topology.CLUSTER:
            return _find_cluster(url, access)


def _read(url: RedisUrl, files: RedisFiles) -> _Access:
    password = url.password
    if files.password is not None:
        password = read_key("PDROUTER_REDIS_PASSWORD_FILE", files.password).decode()
    sentinel = read_key("PDROUTER_REDIS_SENTINEL_PASSWORD_FILE", files.sentinel_password).decode()
    connection = _secure(_create_context(files)) if url.tls else Connection
    return _Access(password, sentinel, connection)


def _create_context(files: RedisFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=files.ca)
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key, password="")
    return context


def _secure(context: ssl.SSLContext) -> type[Connection]:
    """Return connections over TLS that have a context in common: each would make its own."""

    class TlsConnection(SSLConnection):
        def _connection_arguments(self) -> Mapping[str, Any]:
            return {**Connection._connection_arguments(self), "ssl": context}  # noqa: SLF001

    return TlsConnection


def _create_pool(
    url: RedisUrl, access: _Access, host: str, port: int, **overridden: str | int | None
) -> ConnectionPool:
    return ConnectionPool(
        connection_class=access.connection,
        max_connections=MAX_CONNECTIONS,
        **{**_asking(url, access), "host": host, "port": port, "db": url.database, **overridden},
    )


def _asking(url: RedisUrl, access: _Access) -> dict[str, Any]:
    return {**_COMMON, "username": url.user or None, "password": access.password or None}


def _ask_sentinels(url: RedisUrl, access: _Access) -> Client:
    sentinels = Sentinel([])  # type: ignore[no-untyped-call]
    own = {"username": None, "password": access.sentinel_password or None, "db": 0}
    sentinels.sentinels = [
        Redis.from_pool(_create_pool(url, access, host, port, **own))
        for host, port in url.addresses
    ]

    class Watched(SentinelManagedConnection, access.connection):  # type: ignore[name-defined, misc]
        """Connects to where the sentinels say."""

    client: Redis = sentinels.master_for(
        url.master,
        connection_class=Watched,
        max_connections=MAX_CONNECTIONS,
        db=url.database,
        **_asking(url, access),
    )
    return Client(client, tuple(sentinels.sentinels))


def _find_cluster(url: RedisUrl, access: _Access) -> Client:
    nodes = [ClusterNode(host, port) for host, port in url.addresses]
    # Moved keys are followed, and else nothing is tried again.
    arguments = {**_asking(url, access), "max_connections": MAX_CONNECTIONS}
    cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **arguments)
    cluster.connection_kwargs["connection_class"] = access.connection
    for node in cluster.startup_nodes:
        node.connection_class = access.connection
    return Client(cluster)
