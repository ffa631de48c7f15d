"""Which addresses pods may have: what is sent to a pod must not reach anything else."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NO_PODS = tuple(
    (ip_network(text), kind)
    for kind, texts in (
        ("a loopback address", ("127.0.0.0/8", "::1/128")),
        ("a link-local address", ("169.254.0.0/16", "fe80::/10")),
        # Clouds tell credentials there; those of IPv4 are link-local, but for two.
        (
            "an address of a cloud's metadata",
            ("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::254/128", "fd20:ce::254/128"),
        ),
        ("a multicast address", ("224.0.0.0/4", "ff00::/8")),
        ("an unspecified address", ("0.0.0.0/8", "::/128", "255.255.255.255/32")),
        # They stand for IPv4 addresses, which would be judged by nobody.
        ("an IPv4 address in disguise", ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16")),
    )
    for text in texts
)
# Nothing is sent to these: they are for documentation.
_FAR_AWAY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Judges the addresses that pods are said to have.

    Attributes:
        networks: where pods must be; empty for anywhere. Addresses that are otherwise no pod's,
            such as loopback ones, may be one's if a network of that kind is named.
        own: addresses of the router itself.
    """

    networks: tuple[Network, ...] = ()
    own: frozenset[Address] = frozenset()

    def find_fault(self, text: str) -> str:
        """Return why no pod can have an address, for people; empty if one can."""
        address = _read(text)
        if address is None:
            return f"address {text!r:.60} is no IP address"
        fault = self._judge(address)
        return f"address {text} is {fault}" if fault else ""

    def _judge(self, address: Address) -> str:
        if address in self.own:
            return "the router's own"
        homes = [network for network in self.networks if address in network]
        for network, kind in _NO_PODS:
            if address in network and not any(_lies_in(home, network) for home in homes):
                return kind
        return "" if homes or not self.networks else "in none of PDROUTER_POD_NETWORKS"


ANY_POD_ADDRESS = AddressRules()
"""Lets pods have every address that can be one's."""


def _lies_in(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)


def find_own_addresses(known: Iterable[str], *, in_pod: bool) -> frozenset[Address]:
    """Return the addresses that are the router's and no engine's.

    Args:
        known: addresses that are known to be the router's.
        in_pod: whether the router runs in a pod, and so has addresses that no other pod has.
    """
    texts = (*known, *_ask_for_sources()) if in_pod else known
    return frozenset(map(ip_address, texts))


def _read(text: str) -> Address | None:
    try:
        # A zone means something on one machine only.
        return ip_address("" if "%" in text else text)
    except ValueError:
        return None


def _ask_for_sources() -> Iterator[str]:
    for family, address in _FAR_AWAY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                # Of UDP, this only asks which address would be the sender's: no packet leaves.
                probe.connect((address, 9))
                yield probe.getsockname()[0]
        except OSError:
            # There is no way to such addresses, and so no address of this kind.
            continue
