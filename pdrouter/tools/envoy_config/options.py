"""What an operator decides about Envoy: addresses, limits and timeouts, checked once."""

import enum
import ipaddress
from dataclasses import dataclass
from typing import Self

from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.settings.choices import Routing
from pdrouter.tools.envoy_config.cors import check_origins
from pdrouter.tools.envoy_config.pod_tls import PodTls

MAX_HEADERS = 256
"""Headers of one message; Envoy's default is 100."""
MAX_HEADER_KB = 96
"""Their size in KiB; Envoy's default is 60."""

_MIB = 1024 * 1024
# Time for the router to turn its own prefill deadline into an answer before Envoy gives up.
_MESSAGE_TIMEOUT_MARGIN_S = 5.0
# Envoy accepts no message timeout above an hour.
_MAX_PREFILL_TIMEOUT_S = 3600 - _MESSAGE_TIMEOUT_MARGIN_S


@dataclass(frozen=True, slots=True)
class Address:
    """A host with a TCP port.

    Attributes:
        host: IPv4 or IPv6 address (no brackets), or a host name.
        port: 0 to 65535; 0 lets the kernel choose, where Envoy listens.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `host:port`; an IPv6 address stands in brackets.

        Raises:
            ValueError: If the text has another form.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        valid_host = _is_ip(host, version=6) if bracketed else bool(host) and ":" not in host
        valid_port = port.isascii() and port.isdecimal() and int(port) <= 65535
        if not (colon and valid_host and valid_port):
            raise ValueError(f"{text!r} is not host:port (an IPv6 address stands in brackets)")
        return cls(host, int(port))

    @property
    def is_ip(self) -> bool:
        """Whether the host is an address, so that nothing needs to be resolved."""
        return _is_ip(self.host)

    def list_workers(self, workers: int) -> "tuple[Address, ...]":
        """Lists the addresses of the workers of a router, of which this is the first.

        Raises:
            ValueError: If there are not so many ports.
        """
        if self.port + workers - 1 > 65535:
            raise ValueError(f"there are no {workers} ports from {self} on")
        return tuple(Address(self.host, self.port + number) for number in range(workers))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ResponseBodyMode(enum.StrEnum):
    """Whether response bodies pass through the router."""

    NONE = "none"
    """They do not: tokens cost the router nothing."""

    STREAMED = "streamed"
    """Every chunk does, unless the router turns it off at the response headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyConfig:
    """The decisions behind one Envoy bootstrap.

    Attributes:
        routers: The routers' gRPC addresses; several are the workers of one router or its
            replicas. Host names are resolved by Envoy.
        listen: Where clients connect, with HTTP/1.1 or HTTP/2 (prior knowledge).
        admin: Envoy's admin server, on loopback since it asks nobody who they are; None for none.
        routing: How the chosen pod is reached.
        decode: The decode pods, needed for `Routing.OVERRIDE_HOST` only.
        response_body: Whether response bodies pass through the router.
        allow_mode_override: Lets the router change the body modes of one request.
        max_message_bytes: What the router's gRPC server accepts as one message.
        prefill_timeout_s: The router's deadline for a prefill leg, all attempts together.
        decode_silence_timeout_s: How long the decode engine may send nothing, before and
            between tokens.
        max_concurrent_requests: Requests in flight in one Envoy; above it, Envoy answers 503.
        router_ca_file: PEM file with the authority of the routers' certificates, as Envoy sees
            the file system; None speaks plain text to the routers.
        pod_tls: How Envoy speaks to the pods; None for plain text.
        router_health_checks: Asks the routers' gRPC health service, so that a draining router
            gets no new requests.
        router_log: Tells the routers of each request that has ended, and when its first token came.
        token_accounting: Lets Envoy count the tokens of answers, and tell them in that log.
        access_log: File (`/dev/stdout` included) that gets a line per request; None for no log.
        trace_collector: Where Envoy sends spans of its own, over OTLP/HTTP; None for nowhere.
        trace_percent: How many requests are traced whose `traceparent` has not decided it.
        cors_origins: Web pages that may call, `*` for any; empty for none.
        cors_credentials: Whether they may call with cookies and the like.

    Raises:
        ValueError: If the decisions contradict each other or lie outside what Envoy accepts.
    """

    routers: tuple[Address, ...]
    listen: Address = Address("0.0.0.0", 10080)
    admin: Address | None = None
    routing: Routing = Routing.ORIGINAL_DST
    decode: tuple[Address, ...] = ()
    response_body: ResponseBodyMode = ResponseBodyMode.NONE
    allow_mode_override: bool = True
    max_message_bytes: int = 16 * _MIB
    prefill_timeout_s: float = 60.0
    decode_silence_timeout_s: float = 300.0
    max_concurrent_requests: int = 10_000
    router_ca_file: str | None = None
    pod_tls: PodTls | None = None
    router_health_checks: bool = True
    router_log: bool = True
    token_accounting: bool = False
    access_log: str | None = None
    trace_collector: Address | None = None
    trace_percent: float = 100.0
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False

    def __post_init__(self) -> None:
        self._check_addresses()
        check_origins(self.cors_origins, credentials=self.cors_credentials)
        if self.token_accounting and not self.router_log:
            raise ValueError("token accounting needs the routers' log, in which tokens are told")
        for name, value, lowest, highest in (
            ("max message bytes", self.max_message_bytes, _MIB, 2**31 - 1),
            ("max concurrent requests", self.max_concurrent_requests, 1, 2**31 - 2),
            ("prefill timeout", self.prefill_timeout_s, 0.001, _MAX_PREFILL_TIMEOUT_S),
            ("decode silence timeout", self.decode_silence_timeout_s, 0.001, 86_400),
            ("trace percent", self.trace_percent, 0, 100),
        ):
            if not lowest <= value <= highest:
                raise ValueError(f"{name} {value} is not between {lowest} and {highest}")

    def _check_addresses(self) -> None:
        if not self.routers:
            raise ValueError("at least one router address is needed")
        if (self.routing is Routing.OVERRIDE_HOST) != bool(self.decode):
            raise ValueError("override-host routing and decode addresses need each other")
        for role, addresses in (
            ("listen", (self.listen,)),
            ("admin", (self.admin,) if self.admin else ()),
            ("decode", self.decode),
        ):
            for address in addresses:
                if not address.is_ip:
                    raise ValueError(f"{role} address {address} needs an IP address")
        if self.admin is not None and not ipaddress.ip_address(self.admin.host).is_loopback:
            raise ValueError(f"admin address {self.admin} is not loopback; anyone could stop Envoy")
        collectors = () if self.trace_collector is None else (self.trace_collector,)
        for address in self.routers + self.decode + collectors:
            if address.port == 0:
                raise ValueError(f"{address} needs a port to connect to")

    @property
    def body_limit_bytes(self) -> int:
        """The largest request body that Envoy takes, before and after the router's edit.

        Below the router's message limit, so that the client gets Envoy's 413 and never the
        failure of a gRPC call.
        """
        return self.max_message_bytes - MESSAGE_OVERHEAD_BYTES

    @property
    def message_timeout_s(self) -> float:
        """How long Envoy waits for the answer to one message; a prefill runs within one."""
        return self.prefill_timeout_s + _MESSAGE_TIMEOUT_MARGIN_S

    @property
    def stream_idle_timeout_s(self) -> float:
        """How long a request may see no byte in either direction: prefill, then decode."""
        return self.message_timeout_s + self.decode_silence_timeout_s


def _is_ip(host: str, *, version: int | None = None) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return version is None or address.version == version
