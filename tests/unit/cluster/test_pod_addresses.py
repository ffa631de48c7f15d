"""Which addresses pods may have."""

import socket
from ipaddress import ip_address, ip_network

import pytest

from pdrouter.cluster.pod_addresses import AddressRules, find_own_addresses


@pytest.mark.parametrize(
    "text",
    ["10.0.0.1", "192.168.1.9", "100.64.3.7", "240.1.2.3", "fd00:1::5", "2600:1f14::1", "8.8.8.8"],
)
def test_pods_have_such_addresses(text: str) -> None:
    assert AddressRules().find_fault(text) == ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("127.0.0.1", "a loopback address"),
        ("127.200.0.9", "a loopback address"),
        ("::1", "a loopback address"),
        ("0:0:0:0:0:0:0:1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("169.254.170.2", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("fd00:ec2::254", "an address of a cloud's metadata"),
        ("168.63.129.16", "an address of a cloud's metadata"),
        ("224.0.0.1", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("0.0.0.0", "an unspecified address"),
        ("0.0.0.1", "an unspecified address"),
        ("::", "an unspecified address"),
        ("255.255.255.255", "an unspecified address"),
        ("::ffff:127.0.0.1", "an IPv4 address in disguise"),
        ("::ffff:10.0.0.1", "an IPv4 address in disguise"),
        ("::ffff:7f00:1", "an IPv4 address in disguise"),
        ("::127.0.0.1", "an IPv4 address in disguise"),
        ("64:ff9b::7f00:1", "an IPv4 address in disguise"),
        ("2002:7f00:1::", "an IPv4 address in disguise"),
    ],
)
def test_no_pod_has_such_an_address(text: str, kind: str) -> None:
    assert AddressRules().find_fault(text) == f"address {text} is {kind}"
    # Not even where all addresses are named.
    everything = AddressRules((ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert kind in everything.find_fault(text)


@pytest.mark.parametrize(
    "text",
    ["localhost", "10.0.0", "10.0.0.1:80", "010.0.0.1", "2130706433", "fe80::1%eth0", "[::1]"],
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert AddressRules().find_fault(text) == f"address {text!r} is no IP address"


def test_networks_can_be_named() -> None:
    rules = AddressRules((ip_network("10.8.0.0/14"), ip_network("fd00:1::/32")))
    assert rules.find_fault("10.9.0.1") == ""
    assert rules.find_fault("fd00:1::9") == ""
    outside = "is in none of PDROUTER_POD_NETWORKS"
    assert outside in rules.find_fault("10.0.0.1")
    assert outside in rules.find_fault("fd00:2::1")


@pytest.mark.parametrize(
    ("network", "text"), [("127.64.0.0/16", "127.64.0.1"), ("fe80::/10", "fe80::1")]
)
def test_a_network_of_this_machine_can_be_named(network: str, text: str) -> None:
    rules = AddressRules((ip_network(network),))
    assert rules.find_fault(text) == ""
    assert rules.find_fault("127.0.0.1") == "address 127.0.0.1 is a loopback address"


def test_the_routers_own_address_is_no_pods() -> None:
    own = frozenset({ip_address("10.0.0.7"), ip_address("fd00::7")})
    for rules in (AddressRules((), own), AddressRules((ip_network("10.0.0.0/8"),), own)):
        assert rules.find_fault("10.0.0.7") == "address 10.0.0.7 is the router's own"
        assert rules.find_fault("10.0.0.8") == ""
    assert "own" in AddressRules((), own).find_fault("fd00:0::7")


def test_own_addresses_are_those_that_are_known() -> None:
    known = ["10.9.8.7", "fd00::7"]
    told = {ip_address("10.9.8.7"), ip_address("fd00::7")}
    assert find_own_addresses(known, in_pod=False) == told
    in_pod = find_own_addresses(known, in_pod=True)
    assert told <= in_pod
    assert not any(address.is_unspecified for address in in_pod)


def test_a_pods_own_addresses_are_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no way to others")
        source = ip_address(probe.getsockname()[0])
    assert source in find_own_addresses((), in_pod=True)
