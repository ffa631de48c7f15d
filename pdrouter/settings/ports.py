"""The settings of the ports, and of the end of the process."""

from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.choices import Transport
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import BIND, MIB, PATH, TEXT, enumeration, number, seconds, size


@dataclass(frozen=True)
class PortSettings:
    """Settings of what listens, and how it ends."""

    grpc_bind: tuple[str, int] = declare(
        ("0.0.0.0", 50052),
        "PDROUTER_GRPC_BIND",
        BIND,
        "Where Envoy connects.",
        "--grpc-bind",
    )
    transport: Transport = declare(
        Transport.HTTP2,
        "PDROUTER_TRANSPORT",
        enumeration(Transport, *Transport),
        "What carries the ext_proc streams: `http2`, a server of our own that takes about half of "
        "the CPU, or `grpcio` (performance.md).",
        advanced=True,
    )
    http_bind: tuple[str, int] = declare(
        ("0.0.0.0", 8080),
        "PDROUTER_HTTP_BIND",
        BIND,
        "Where metrics, probes and debug pages are served.",
        "--http-bind",
    )
    workers: int = declare(
        1,
        "PDROUTER_WORKERS",
        number(int, "a whole number", 1, 64),
        "Processes that serve, and choose as one. Each has a gRPC port of its own, counted up "
        "from that of PDROUTER_GRPC_BIND; Envoy must know each of them (envoy.md). The HTTP port "
        "is common.",
        "--workers",
    )
    max_message_bytes: int = declare(
        16 * MIB,
        "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES",
        size(MIB, 1024 * MIB),
        "Largest ext_proc message, and so about the largest request body. `pdrouter envoy-config` "
        "derives Envoy's buffer limits from it.",
        "--max-message-bytes",
    )
    max_headers: int = declare(
        100,
        "PDROUTER_MAX_HEADERS",
        number(int, "a whole number", 20, 256),
        "Envoy's `max_headers_count`, whose default this is; `pdrouter envoy-config` sets 256. A "
        "request that has more, with the up to seven that the router sets, is a 431.",
        advanced=True,
    )
    max_header_bytes: int = declare(
        60 * 1024,
        "PDROUTER_MAX_HEADER_BYTES",
        size(8 * 1024, 96 * 1024),
        "Envoy's `max_request_headers_kb`, whose default this is; `pdrouter envoy-config` sets "
        "96 KiB. Requests with larger headers are a 431.",
        advanced=True,
    )
    max_held_bytes: int | None = declare(
        None,
        "PDROUTER_MAX_HELD_BYTES",
        size(MIB, 2**50),
        "Memory for request bodies that wait (for prefill, for Envoy), of all workers together. "
        "What comes above it gets 503. Unset: a third of what the container may have beyond "
        "192 MiB for each worker.",
    )
    grpc_keepalive_s: float = declare(
        30.0,
        "PDROUTER_GRPC_KEEPALIVE",
        seconds(1, 7200),
        "Idle time after which a connection from Envoy is probed, and time for the answer.",
        advanced=True,
    )
    tls_certificate: Path | None = declare(
        None,
        "PDROUTER_TLS_CERTIFICATE",
        PATH,
        "Certificate chain (PEM) for the gRPC port; followed when it changes. Unset: plain text.",
    )
    tls_key: Path | None = declare(
        None, "PDROUTER_TLS_KEY", PATH, "Private key (PEM) of the certificate."
    )
    tls_client_ca: Path | None = declare(
        None,
        "PDROUTER_TLS_CLIENT_CA",
        PATH,
        "Certificates (PEM) that sign Envoy's client certificate. Unset: any client may connect.",
    )
    bearer_token: str | None = declare(
        None,
        "AIBRIX_AUTH_BEARER_TOKEN",
        TEXT,
        "Key that clients must present (`Authorization: Bearer`, or `x-api-key`). Unset: none.",
        secret=True,
    )
    lame_duck_s: float = declare(
        5.0,
        "PDROUTER_LAME_DUCK",
        seconds(0, 300),
        "After SIGTERM, time in which new requests are still served while health says NOT_SERVING.",
    )
    drain_s: float = declare(
        600.0,
        "PDROUTER_DRAIN",
        seconds(0, 86400),
        "After SIGTERM, time for open requests to finish; what is open then is cancelled.",
    )
