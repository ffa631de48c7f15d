"""The settings of the Redis or Valkey server in which routers share what they count."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import PATH, TEXT, ValueKind, seconds
from pdrouter.settings.redis_url import (
    DEFAULT_PORT,
    RedisUrl,
    Topology,
    parse_redis_port,
    parse_redis_url,
)


def _parse_prefix(text: str) -> str:
    # In braces, it is what nodes of a cluster choose by: it must not have some of its own.
    if not re.fullmatch(r"[\w.:/-]+", text, re.ASCII):
        raise ValueError(text)
    return text


_URL = ValueKind(
    parse_redis_url,
    "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], redis+sentinel://HOST,HOST/MASTER or "
    "redis+cluster://HOST,HOST; rediss instead of redis for TLS",
    lambda url: "" if url is None else url.write(),
)
_PORT = ValueKind(parse_redis_port, "a port, or tcp://HOST:PORT")
_PREFIX = ValueKind(_parse_prefix, "letters, digits, '_', '-', '.', ':' and '/'")


@dataclass(frozen=True)
class RedisSettings:
    """Settings of a Redis or Valkey server."""

    redis_url: RedisUrl | None = declare(
        None,
        "PDROUTER_REDIS_URL",
        _URL,
        "Redis or Valkey in which all replicas count users' requests and tokens together "
        "(redis.md). Unset: each router counts for itself, unless `REDIS_HOST` is set. A password "
        "is better kept in a file: `PDROUTER_REDIS_PASSWORD_FILE`.",
        secret=True,
    )
    redis_password_file: Path | None = declare(
        None,
        "PDROUTER_REDIS_PASSWORD_FILE",
        PATH,
        "File with the password for it; read again whenever it is refused, or the server was away.",
    )
    redis_ca: Path | None = declare(
        None,
        "PDROUTER_REDIS_CA",
        PATH,
        "Certificates (PEM) that sign the server's. Unset: those that the system trusts.",
        advanced=True,
    )
    redis_certificate: Path | None = declare(
        None,
        "PDROUTER_REDIS_CERTIFICATE",
        PATH,
        "Certificate (PEM) that the router shows the server, which may ask for one.",
        advanced=True,
    )
    redis_key: Path | None = declare(
        None, "PDROUTER_REDIS_KEY", PATH, "Private key (PEM) of that certificate.", advanced=True
    )
    redis_sentinel_password_file: Path | None = declare(
        None,
        "PDROUTER_REDIS_SENTINEL_PASSWORD_FILE",
        PATH,
        "File with the password of the sentinels, where they ask for one.",
        advanced=True,
    )
    redis_timeout_s: float = declare(
        0.05,
        "PDROUTER_REDIS_TIMEOUT",
        seconds(0.001, 10),
        "Longest time that a request waits for it, connecting included. After that, "
        "`PDROUTER_LIMITS_ON_FAILURE` decides.",
        advanced=True,
    )
    redis_prefix: str = declare(
        "pdrouter",
        "PDROUTER_REDIS_PREFIX",
        _PREFIX,
        "What the names of all keys that the router writes begin with: routers with the same one "
        "count together.",
        advanced=True,
    )
    redis_host: str | None = declare(
        None,
        "REDIS_HOST",
        TEXT,
        "Host of aibrix's Redis, as aibrix's manifests set it; `PDROUTER_REDIS_URL` wins.",
        advanced=True,
    )
    redis_port: int = declare(DEFAULT_PORT, "REDIS_PORT", _PORT, "Its port.", advanced=True)
    redis_password: str | None = declare(
        None, "REDIS_PASSWORD", TEXT, "Its password.", secret=True, advanced=True
    )

    @property
    def redis(self) -> RedisUrl | None:
        """Where the server is; None where none is named."""
        if self.redis_url is not None or self.redis_host is None:
            return self.redis_url
        address = (self.redis_host, self.redis_port)
        return RedisUrl((address,), password=self.redis_password or "")

    def find_redis_conflicts(self) -> Iterator[str]:
        """Yield which of these settings do not go together, and why."""
        server = self.redis
        if (self.redis_certificate is None) != (self.redis_key is None):
            yield "PDROUTER_REDIS_CERTIFICATE and PDROUTER_REDIS_KEY go together"
        for variable, value in (
            ("PDROUTER_REDIS_CA", self.redis_ca),
            ("PDROUTER_REDIS_CERTIFICATE", self.redis_certificate),
        ):
            if value is not None and not (server and server.tls):
                yield f"{variable} needs a PDROUTER_REDIS_URL that begins with rediss"
        if self.redis_password_file is not None and not (server and not server.password):
            yield "PDROUTER_REDIS_PASSWORD_FILE needs a server whose password is not given besides"
        sentinels = server is not None and server.topology is Topology.SENTINEL
        if self.redis_sentinel_password_file is not None and not sentinels:
            yield "PDROUTER_REDIS_SENTINEL_PASSWORD_FILE needs sentinels in PDROUTER_REDIS_URL"
