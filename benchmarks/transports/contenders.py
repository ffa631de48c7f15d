"""The carriers that are compared."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transport:
    """A carrier.

    Attributes:
        name: its name in commands and reports, and in `PDROUTER_TRANSPORT`.
        sources: patterns of the files that it consists of, in this repository.
        has: what it has of TLS, health, trailers, drain and limits.
        lacks: what it has not.
    """

    name: str
    sources: tuple[str, ...]
    has: str
    lacks: str


TRANSPORTS = {
    transport.name: transport
    for transport in (
        Transport(
            "grpcio",
            ("pdrouter/extproc/grpcio_server.py",),
            "TLS with certificates that are replaced, client certificates, health, trailers, "
            "compression, GOAWAY and drain, keepalive, deadlines of calls",
            "a limit on pings (`grpc.http2.max_ping_strikes` is 0, for Envoy's probes)",
        ),
        Transport(
            "http2",
            ("pdrouter/extproc/http2/*.py",),
            "TLS with certificates that are replaced, client certificates, health, trailers, "
            "GOAWAY and drain in two steps, keepalive, flow control in both directions, limits on "
            "streams, headers, messages and floods of frames",
            "compressed messages (refused by their status); deadlines of calls (grpc-timeout is "
            "left to the client); years of use by others",
        ),
    )
}
