"""Host names: looked up in threads, and what becomes of those that cannot be."""

import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pdrouter.cluster.host_names import HostNames, resolve

WAIT_S = 30.0


@pytest.mark.parametrize(
    ("found", "addresses"),
    [
        (["10.0.0.2", "10.0.0.1", "10.0.0.2"], ("10.0.0.1", "10.0.0.2")),
        # An engine that listens on both would be there twice.
        (["::1", "127.0.0.1"], ("127.0.0.1",)),
        (["fd00::2", "fd00::1", "fe80::1%eth0"], ("fd00::1", "fd00::2")),
    ],
)
def test_all_addresses_of_one_family_are_taken(
    found: list[str], addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(name: str, port: None, *, type: int) -> list[Any]:  # noqa: A002 - its name
        assert (name, port) == ("engine", None)
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, type, 6, "", (ip, 0)) for ip in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert resolve("engine") == addresses


def test_this_machine_is_resolved() -> None:
    assert resolve("localhost") in {("127.0.0.1",), ("::1",)}


@pytest.mark.parametrize("name", ["nothing.invalid", "a" * 64])
def test_a_name_without_an_address_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        resolve(name)


class Server:
    """Answers look-ups in threads, when it is let go."""

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.go = threading.Event()
        self.go.set()
        self.asked: list[str] = []

    def resolve(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        assert self.go.wait(WAIT_S)
        if name not in self.addresses:
            raise OSError(-2, "Unknown name")
        return self.addresses[name]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.go.set()


async def test_a_failure_is_said_once_and_keeps_the_last_addresses(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = HostNames(server.resolve)
    assert await names.look_up(["a"]) == {}
    server.addresses["a"] = ("10.0.0.1",)
    assert await names.look_up(["a"]) == {"a": ("10.0.0.1",)}
    server.addresses.clear()
    for _ in range(3):
        assert await names.look_up(["a"]) == {"a": ("10.0.0.1",)}
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("ERROR", "host name a cannot be resolved: Unknown name"),
        ("INFO", "host name is resolved again"),
        (
            "ERROR",
            "host name a cannot be resolved, its last addresses stay in use: Unknown name",
        ),
    ]


async def test_a_silent_name_server_holds_up_nothing_for_long(server: Server) -> None:
    names = HostNames(server.resolve, wait_s=0.01)
    server.addresses = {"a": ("10.0.0.1",)}
    server.go.clear()
    for _ in range(3):
        assert await names.look_up(["a"]) == {}
    assert server.asked == ["a"], "one look-up of a name at a time"
    server.go.set()

    async def found() -> bool:
        return await names.look_up(["a"]) == {"a": ("10.0.0.1",)}

    for _ in range(1000):
        if await found():
            break
    assert await found()


async def test_names_that_are_gone_are_forgotten(server: Server) -> None:
    server.addresses = {"a": ("10.0.0.1",), "b": ("10.0.0.2",)}
    names = HostNames(server.resolve)
    assert set(await names.look_up(["a", "b"])) == {"a", "b"}
    server.addresses.clear()
    assert set(await names.look_up(["b"])) == {"b"}
    assert set(await names.look_up(["a", "b"])) == {"b"}
