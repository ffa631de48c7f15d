"""The address at which other nodes reach an engine."""

import socket

THIS_NODE = frozenset({"localhost", "0.0.0.0", "::"})
"""Hosts that mean the node on which they are read."""

_WILDCARDS = {"": socket.AF_INET, "0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def reachable_host(bind_host: str) -> str:
    """Give the host under which an engine bound to `bind_host` is reached.

    For a wildcard that is the address with which this node talks to others, found without
    sending anything; on a node without network it is the loopback address.
    """
    family = _WILDCARDS.get(bind_host)
    if family is None:
        return bind_host
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[family], 9))
        except OSError:
            return _LOOPBACK[family]
        return str(probe.getsockname()[0])


def join_address(host: str, port: int) -> str:
    """Write `host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
