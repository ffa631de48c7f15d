"""The carriers that are compared."""

from dataclasses import dataclass
from importlib import import_module

from pdrouter.app import Router
from pdrouter.extproc.server import Server


@dataclass(frozen=True, slots=True)
class Transport:
    """A carrier.

    Attributes:
        name: its name in commands and reports.
        module: where its server is.
        server: name of the server's class.
    """

    name: str
    module: str
    server: str

    def install(self) -> None:
        """Let each router that is built in this process from now on use it."""
        # Loaded when chosen: none is to be measured with the others' libraries in its memory.
        server: type[Server] = getattr(import_module(self.module), self.server)
        Router.server_class = server


TRANSPORTS = {
    transport.name: transport
    for transport in (
        Transport("grpcio", "pdrouter.extproc.server", "ExtProcServer"),
        Transport("granian", "benchmarks.transports.asgi", "GranianServer"),
        Transport("http2", "benchmarks.transports.http2.ext_proc_server", "Http2Server"),
    )
}
