"""Ports to listen on: which setting names one that cannot be used, and why it cannot."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_CAUSES = {
    errno.EADDRINUSE: "the port is taken by another process",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "this user may not open such a low port",
}


class PortUnusable(OSError):
    """Nothing can listen there; the message names the setting and the cause."""


def check_port(setting: str, host: str, port: int) -> None:
    """Check that somebody can listen at a port.

    Args:
        setting: what names the port.
        host: the address.
        port: the port.

    Raises:
        PortUnusable: nobody can.
    """
    cause = _find_cause(host, port)
    if cause:
        raise PortUnusable(_describe(setting, host, port, cause))


@contextmanager
def naming_port(setting: str, host: str, port: int) -> Iterator[None]:
    """Say which setting it was if a port cannot be opened within the context.

    Args:
        setting: what names the port.
        host: the address.
        port: the port.

    Raises:
        PortUnusable: nothing can listen there, or an OSError was raised inside.
    """
    # Tried first, because gRPC does not say why it cannot, and writes lines of its own.
    check_port(setting, host, port)
    try:
        yield
    except OSError as error:
        raise PortUnusable(_describe(setting, host, port, str(error))) from error


def _describe(setting: str, host: str, port: int, cause: str) -> str:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"cannot listen on {shown}: {cause}; choose another with {setting}"


def _find_cause(host: str, port: int) -> str:
    """Try the port; return why that fails, or nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        return f"{host} is no address of this machine ({error.strerror})"
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen()
    except OSError as error:
        number = error.errno or 0
        return _CAUSES.get(number, os.strerror(number))
    return ""
