"""Pods and their addresses."""

import dataclasses
from typing import Any

import pytest
from factories import make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import PairingKey, Role, format_address, is_ip, parse_address


@pytest.mark.parametrize("engine", ["xdit", "xllm"])
@pytest.mark.parametrize("role", Role)
def test_engines_that_split_nothing_serve_whole_whatever_their_role(
    engine: str, role: Role
) -> None:
    whole = role in (Role.PREFILL, Role.DECODE)
    assert make_pod(role=role, engine=engine).role is (Role.BOTH if whole else role)


@pytest.mark.parametrize(
    ("text", "ip", "port"),
    [
        ("10.0.0.1:8000", "10.0.0.1", 8000),
        ("10.0.0.1:1", "10.0.0.1", 1),
        ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[::1]:8000", "::1", 8000),
        ("[FD00:0:0::1]:80", "fd00::1", 80),
        ("localhost:8000", "localhost", 8000),
        (
            "Engine-0.engines.prod.svc.cluster.local:80",
            "engine-0.engines.prod.svc.cluster.local",
            80,
        ),
        ("my_engine:80", "my_engine", 80),
        ("4b:80", "4b", 80),
        ("engine.:80", "engine.", 80),
    ],
)
def test_addresses_are_read(text: str, ip: str, port: int) -> None:
    assert parse_address(text) == (ip, port)
    assert is_ip(ip) == (ip[0] in "1:f")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no port"),
        (":8000", "neither an IP address nor a host name"),
        ("10.0.0.1", "has no port"),
        ("engine", "has no port"),
        ("10.0.0.256:8000", "neither an IP address nor a host name"),
        ("10.0.0.01:8000", "neither an IP address nor a host name"),
        ("10.0.0:8000", "neither an IP address nor a host name"),
        ("-engine:8000", "neither an IP address nor a host name"),
        ("a..b:8000", "neither an IP address nor a host name"),
        ("a b:8000", "neither an IP address nor a host name"),
        ("a" * 64 + ":8000", "neither an IP address nor a host name"),
        ("http://10.0.0.1:8000", "without a scheme or a path"),
        ("10.0.0.1:8000/v1", "without a scheme or a path"),
        ("[fe80::1%eth0]:8000", "neither an IP address nor a host name"),
        ("::1:8000", "stands in brackets"),
        ("[10.0.0.1]:8000", "stands in brackets"),
        ("[::1", "neither an IP address nor a host name"),
        ("10.0.0.1:0", "from 1 to 65535"),
        ("10.0.0.1:65536", "from 1 to 65535"),
        ("10.0.0.1:", "from 1 to 65535"),
        ("10.0.0.1:-1", "from 1 to 65535"),
        ("10.0.0.1:80x", "from 1 to 65535"),
        ("10.0.0.1: 80", "from 1 to 65535"),
        ("10.0.0.1:٨٠", "from 1 to 65535"),
        ("10.0.0.1:" + "9" * 5000, "from 1 to 65535"),
    ],
)
def test_anything_else_is_no_address(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_address(text)


@given(st.ip_addresses().map(str), st.integers(1, 65535))
def test_an_address_that_is_written_can_be_read(ip: str, port: int) -> None:
    assert parse_address(format_address(ip, port)) == (ip, port)


@given(st.text(max_size=12))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        ip, port = parse_address(text)
    except ValueError:
        return
    assert parse_address(format_address(ip, port)) == (ip, port)


@pytest.mark.parametrize(("ip", "address"), [("10.0.0.1", "10.0.0.1:80"), ("::1", "[::1]:80")])
def test_a_pod_knows_its_address(ip: str, address: str) -> None:
    assert make_pod(ip=ip, port=80).address == address


def test_a_pod_pairs_by_namespace_roleset_and_engine() -> None:
    pod = make_pod(namespace="ns", roleset="rs", engine="vllm")
    assert pod.pairing == PairingKey("ns", "rs", "vllm")
    shared: dict[str, Any] = {"namespace": "ns", "roleset": "rs", "engine": "vllm"}
    for name in shared:
        assert make_pod(**(shared | {name: "x"})).pairing != pod.pairing
    twin = make_pod(
        "other", Role.DECODE, namespace="ns", roleset="rs", ip="10.0.0.2", kv_connector="shfs"
    )
    assert twin.pairing == pod.pairing


@pytest.mark.parametrize(
    ("ready", "obstacle", "expected"),
    [(True, "", True), (False, "", False), (True, "it ends", False), (False, "it ends", False)],
)
def test_a_pod_with_an_obstacle_is_not_ready(ready: bool, obstacle: str, expected: bool) -> None:
    pod = make_pod(ready=ready, obstacle=obstacle)
    assert pod.ready is expected
    assert pod.obstacle == obstacle


def test_a_pod_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_pod().ready = False  # type: ignore[misc]
