"""Where a Redis or Valkey server is, written as one URL."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_MASTER = re.compile(r"[\w.-]+", re.ASCII)
_SERVICE_LINK = re.compile(r"tcp://[^/]+:(\d+)")


class Topology(StrEnum):
    """How the servers behind a URL belong together."""

    SINGLE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """Where a server is, and who asks it.

    Attributes:
        addresses: host and port of the server; of several sentinels, or of nodes of a cluster.
        topology: how they belong together.
        tls: whether they are spoken to over TLS.
        user: name of the user; empty for the default one.
        password: password of the user; empty for none.
        database: number of the database.
        master: what sentinels call the server; empty without them.
    """

    addresses: tuple[tuple[str, int], ...]
    topology: Topology = Topology.SINGLE
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    master: str = ""

    def describe(self) -> str:
        """Return the URL without who asks, for people."""
        return self._write("")

    def write(self) -> str:
        """Return the URL with all that it says."""
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        asking = f"{quote(self.user, safe='')}{secret}"
        return self._write(f"{asking}@" if asking else "")

    def _write(self, asking: str) -> str:
        scheme = "rediss" if self.tls else "redis"
        if self.topology:
            scheme = f"{scheme}+{self.topology}"
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses
        )
        path = [self.master] if self.master else []
        path += [str(self.database)] if self.database else []
        return f"{scheme}://{asking}{'/'.join([hosts, *path])}"


def parse_redis_url(text: str) -> RedisUrl:
    """Return what a URL says.

    Raises:
        ValueError: it is none of those that are known.
    """
    parts = urlsplit(text)
    scheme, _, topology = parts.scheme.partition("+")
    tls = {"redis": False, "rediss": True, "valkey": False, "valkeys": True}.get(scheme)
    if tls is None or parts.query or parts.fragment:
        raise ValueError("not a URL of a server")
    kind = Topology(topology)
    asking, _, hosts = parts.netloc.rpartition("@")
    user, _, password = asking.partition(":")
    port = SENTINEL_PORT if kind is Topology.SENTINEL else DEFAULT_PORT
    addresses = tuple(_parse_address(each.strip(), port) for each in hosts.split(","))
    if kind is Topology.SINGLE and len(addresses) > 1:
        raise ValueError("several servers need sentinels, or are a cluster")
    path = [unquote(part) for part in parts.path.split("/")[1:] if part]
    master = ""
    if kind is Topology.SENTINEL:
        if not (path and _MASTER.fullmatch(path[0])):
            raise ValueError("sentinels are asked for a server by name")
        master = path.pop(0)
    database = int(path.pop(0)) if path else 0
    if path or database < 0 or (database and kind is Topology.CLUSTER):
        raise ValueError("not a database")
    return RedisUrl(addresses, kind, tls, unquote(user), unquote(password), database, master)


def parse_redis_port(text: str) -> int:
    """Return the number of a port.

    Kubernetes sets `REDIS_PORT=tcp://10.0.0.1:6379` where a Service is called `redis`.

    Raises:
        ValueError: there is none.
    """
    link = _SERVICE_LINK.fullmatch(text)
    port = int(link[1] if link else text)
    if not 0 < port < 65536:
        raise ValueError(text)
    return port


def _parse_address(text: str, default_port: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(\d+))?", text)
    plain = re.fullmatch(r"([^\[\]:/\s]+)(?::(\d+))?", text)
    found = bracketed or plain
    if found is None:
        raise ValueError("not host:port")
    port = int(found[2]) if found[2] else default_port
    if not 0 < port < 65536:
        raise ValueError("not a port")
    return found[1], port
