"""What is measured: Envoy with an ext_proc server behind it, or without one."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.speed.processes import RouterProcess, run_router
from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_config.clusters import ROUTER_CLUSTER
from pdrouter.tools.envoy_process import EnvoyProcess

FLOOR = "floor"
"""Envoy without ext_proc."""
BEFORE = "before"
"""An earlier version of the router."""
ROUTER = "pdrouter"


@dataclass(frozen=True, slots=True)
class Contender:
    """An ext_proc server that runs already.

    Attributes:
        name: what it is called in the report.
        address: where it takes ext_proc streams.
        pids: its processes, without their children; empty if its CPU cannot be counted.
        others: where it takes them, too.
    """

    name: str
    address: Address
    pids: tuple[int, ...] = ()
    others: tuple[Address, ...] = ()


def parse_contender(text: str) -> Contender:
    """Read `name=host:port`, with `,pid=123` as often as there are processes to count.

    Raises:
        ValueError: the text has another form.
    """
    name, equals, rest = text.partition("=")
    address, *options = rest.split(",")
    pids = [option.removeprefix("pid=") for option in options]
    valid = all(option.startswith("pid=") for option in options)
    if not (name and equals and valid and all(pid.isdecimal() for pid in pids)):
        raise ValueError(f"{text!r} is not name=host:port[,pid=number...]")
    if name in (FLOOR, BEFORE, ROUTER):
        raise ValueError(f"{name!r} is a name that the benchmark uses itself")
    return Contender(name, Address.parse(address), tuple(map(int, pids)))


@dataclass(frozen=True, slots=True)
class Messages:
    """What Envoy's filter has counted: streams to the server, and messages to it."""

    streams: int
    messages: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One way for requests, ready to be loaded.

    Attributes:
        name: its name in the report.
        envoy: the Envoy in front.
        pids: processes of the server; empty without one, or if they are unknown.
        router: the router, if it is one of this code.
    """

    name: str
    envoy: EnvoyProcess
    pids: tuple[int, ...] = ()
    router: RouterProcess | None = None

    @property
    def url(self) -> str:
        """Where clients send chat requests."""
        return f"http://{self.envoy.listener}/v1/chat/completions"

    async def count_messages(self) -> Messages:
        """Return what Envoy has sent to the server so far."""
        url = f"http://{self.envoy.admin}/stats?format=json&filter=ext_proc"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            stats = (await response.json(content_type=None))["stats"]
        counts = {stat["name"]: stat["value"] for stat in stats if "name" in stat}

        def find(name: str) -> int:
            return sum(value for key, value in counts.items() if key.endswith(f".{name}"))

        return Messages(find("streams_started"), find("stream_msgs_sent"))


@asynccontextmanager
async def run_variant(
    contender: Contender | None, router: RouterProcess | None = None
) -> AsyncIterator[Variant]:
    """Run an Envoy in front of a server around a block, or one without a server."""
    async with EnvoyProcess.run(_configure_envoy(contender)) as envoy:
        if contender is None:
            yield Variant(FLOOR, envoy)
        else:
            yield Variant(contender.name, envoy, contender.pids, router)


@asynccontextmanager
async def run_router_variant(
    environment: dict[str, str], before: Path | None = None
) -> AsyncIterator[Variant]:
    """Run the router and its Envoy around a block.

    Args:
        environment: its settings.
        before: the Python of an earlier version; None for this one.
    """
    name = ROUTER if before is None else BEFORE
    async with run_router(environment, python=before or sys.executable) as router:
        address, *others = map(Address.parse, router.addresses)
        contender = Contender(name, address, (router.pid,), tuple(others))
        async with run_variant(contender, router) as variant:
            yield variant


@asynccontextmanager
async def run_all_variants(
    environment: dict[str, str], before: Path, contenders: Sequence[Contender]
) -> AsyncIterator[list[Variant]]:
    """Run the floor, the earlier router, this one and the contenders around a block."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        yield [
            await enter(run_variant(None)),
            await enter(run_router_variant(environment, before)),
            await enter(run_router_variant(environment)),
            *[await enter(run_variant(contender)) for contender in contenders],
        ]


def _configure_envoy(contender: Contender | None) -> str:
    """Return a bootstrap as the router's users have it; without a server, nothing of it is left.

    Without a server, a client chooses the pod itself, by the header that otherwise the server sets.
    """
    config = EnvoyConfig(
        routers=(contender.address, *contender.others) if contender else (Address("127.0.0.1", 1),),
        listen=Address("127.0.0.1", 0),
        admin=Address("127.0.0.1", 0),
        router_health_checks=False,
    )
    text = to_yaml(build_bootstrap(config))
    if contender is not None:
        return text
    bootstrap: dict[str, Any] = yaml.safe_load(text)
    resources = bootstrap["static_resources"]
    resources["clusters"] = [
        cluster for cluster in resources["clusters"] if cluster["name"] != ROUTER_CLUSTER
    ]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["early_header_mutation_extensions"]
    manager["http_filters"] = [
        each for each in manager["http_filters"] if each["name"] != "envoy.filters.http.ext_proc"
    ]
    return yaml.safe_dump(bootstrap)
