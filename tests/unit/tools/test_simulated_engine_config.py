"""Settings, addresses and the request log."""

import argparse
from typing import Any

import pytest

from pdrouter.tools.simulation.command import add_arguments
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.legs import SimulatedLeg
from pdrouter.tools.simulation.node_address import join_address, reachable_host
from pdrouter.tools.simulation.received_requests import RequestLog
from pdrouter.tools.simulation.transfer import TransferFailed, fetch_address


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"role": "prefiller"}, "role"),
        ({"kv_connector": "nixel"}, "kv_connector"),
        ({"release": "newer"}, "release"),
        ({"kv_connector": "neuron-legacy"}, "role"),
        ({"models": ()}, "models"),
        ({"models": ("",)}, "models"),
        ({"port": 70_000}, "port"),
        ({"slots": 0}, "slots"),
        ({"kv_lease_s": 0}, "kv_lease_s"),
        ({"itl_ms": -1}, "itl_ms"),
        ({"prefill_tokens_per_s": float("nan")}, "prefill_tokens_per_s"),
    ],
)
def test_a_setting_out_of_range_is_named(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EngineConfig(**setting)


def test_every_engine_has_its_own_id() -> None:
    assert EngineConfig().engine_id != EngineConfig().engine_id


def test_the_command_line_has_the_defaults_of_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults, args = EngineConfig(), parser.parse_args([])
    for name in ("role", "kv_connector", "release", "itl_ms", "slots", "kv_lease_s"):
        assert getattr(args, name) == getattr(defaults, name)


@pytest.mark.parametrize("host", ["127.0.0.5", "::1", "engine.internal"])
def test_an_engine_is_reached_where_it_is_bound(host: str) -> None:
    assert reachable_host(host) == host


@pytest.mark.parametrize("wildcard", ["0.0.0.0", ""])
def test_an_engine_bound_to_all_addresses_names_one_of_them(wildcard: str) -> None:
    assert reachable_host(wildcard) not in ("0.0.0.0", "")


def test_an_ipv6_address_is_written_with_brackets() -> None:
    assert join_address("::1", 80) == "[::1]:80"
    assert join_address("10.0.0.1", 80) == "10.0.0.1:80"


@pytest.mark.parametrize(
    ("handle", "address"),
    [
        ({"remote_host": "10.0.0.1", "remote_port": 5600}, ("10.0.0.1", 5600)),
        ({"id": "chatcmpl-a@b@10.0.0.1:8000"}, ("10.0.0.1", 8000)),
    ],
)
def test_a_handle_says_where_its_blocks_are(
    handle: dict[str, Any], address: tuple[str, int]
) -> None:
    assert fetch_address(handle) == address


@pytest.mark.parametrize(
    "handle",
    [
        {},
        {"remote_host": "", "remote_port": 1},
        {"remote_host": 3, "remote_port": 1},
        {"remote_host": "a", "remote_port": "1"},
        {"id": "chatcmpl-1"},
    ],
)
def test_a_handle_without_an_address_cannot_be_fetched(handle: dict[str, Any]) -> None:
    with pytest.raises(TransferFailed):
        fetch_address(handle)


def test_the_request_log_keeps_the_last_requests() -> None:
    log = RequestLog(size=2)
    numbers = [log.add("POST", f"/{i}", {}, b"", SimulatedLeg.WHOLE) for i in range(3)]
    log.settle(numbers[0], "answered", 200)
    log.settle(numbers[2], "dropped")
    log.settle(numbers[2], "answered", 200)
    assert [(record.path, record.outcome, record.status) for record in log] == [
        ("/1", "running", None),
        ("/2", "dropped", None),
    ]
    log.clear()
    assert not list(log)


def test_the_request_log_is_bounded_in_bytes() -> None:
    log = RequestLog(size=10, max_body_bytes=5)
    for body in (b"abc", b"de", b"fg"):
        log.add("POST", "/", {}, body, SimulatedLeg.WHOLE)
    assert [record.body for record in log] == [b"de", b"fg"]
    log.clear()
    log.add("POST", "/", {}, b"hijkl", SimulatedLeg.WHOLE)
    assert [record.body for record in log] == [b"hijkl"]


@pytest.mark.parametrize(
    ("body", "shown"), [(b'{"a"', {"body": '{"a"'}), (b"\xff", {"body_base64": "/w=="})]
)
def test_a_recorded_body_can_be_shown_whatever_its_bytes(
    body: bytes, shown: dict[str, str]
) -> None:
    log = RequestLog(size=1)
    log.add("POST", "/x?y=1", {"a": "b"}, body, SimulatedLeg.PREFILL)
    (record,) = log
    assert record.as_json() == {
        "number": 1,
        "method": "POST",
        "path": "/x?y=1",
        "headers": {"a": "b"},
        "leg": "prefill",
        "status": None,
        "outcome": "running",
        **shown,
    }
