"""The carriers that are compared."""

from dataclasses import dataclass
from importlib import import_module

from pdrouter.app import Application
from pdrouter.extproc.server import Server


@dataclass(frozen=True, slots=True)
class Transport:
    """A carrier.

    Attributes:
        name: its name in commands and reports.
        module: where its server is.
        server: name of the server's class.
        sources: patterns of the files that it consists of, in this repository.
        has: what it has of TLS, health, trailers, drain and limits.
        lacks: what it has not.
    """

    name: str
    module: str
    server: str
    sources: tuple[str, ...]
    has: str
    lacks: str

    def install(self) -> None:
        """Let each router that is built in this process from now on use it."""
        # Loaded when chosen: none is to be measured with the others' libraries in its memory.
        server: type[Server] = getattr(import_module(self.module), self.server)
        Application.server_class = server


TRANSPORTS = {
    transport.name: transport
    for transport in (
        Transport(
            "grpcio",
            "pdrouter.extproc.server",
            "ExtProcServer",
            ("pdrouter/extproc/server.py", "pdrouter/extproc/tls.py"),
            "TLS with certificates that are replaced, client certificates, health, trailers, "
            "compression, GOAWAY and drain, keepalive, deadlines of calls",
            "a limit on pings (`grpc.http2.max_ping_strikes` is 0, for Envoy's probes)",
        ),
        Transport(
            "granian",
            "benchmarks.transports.asgi",
            "GranianServer",
            ("benchmarks/transports/asgi.py", "benchmarks/transports/http2/grpc_messages.py"),
            "TLS, client certificates, keepalive, hyper's limits",
            "trailers, so no status after a message: gRPC's own clients take each call for failed; "
            "the health service, so Envoy needs another health check; new certificates without a "
            "restart; a way to refuse new calls before it stops; a bound on what a client sends "
            "ahead of the answers; the access log service; a port that the kernel chooses (we look "
            "for a free one first)",
        ),
        Transport(
            "http2",
            "benchmarks.transports.http2.ext_proc_server",
            "Http2Server",
            ("benchmarks/transports/http2/*.py",),
            "TLS with certificates that are replaced, client certificates, health, trailers, "
            "GOAWAY and drain in two steps, keepalive, flow control in both directions, limits on "
            "streams, headers, messages and floods of frames",
            "compressed messages (refused by their status); deadlines of calls (grpc-timeout is "
            "left to the client); a bound of the memory of a connection below that of all its "
            "streams' windows; the access log service; years of use by others",
        ),
    )
}
