"""What is put under stress: engines, two routers in processes of their own, the real Envoy."""

import asyncio
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.speed.processes import RouterProcess, run_router
from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import describe_engine
from pdrouter.tools.simulation.config import EngineConfig, EngineRole, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine

MODEL = "chaos"
LEASE_S = 3.0
PREFILL_S = 3.0
"""Deadline of the prefill leg."""
_SILENCE_S = 2.0
_STOP_S = 15.0
_LOOPBACK = "127.0.0.1"
_PORT = 12_000
"""Where routers and Envoy listen: below the ports that the kernel gives to connections."""
_ROLESETS = ("a", "b")
_PER_ROLE = 2
_FAILED = (b'"level":"error"', b'"level": "error"', b'"exception"')

SETTINGS: Mapping[str, str] = {
    "PDROUTER_ENDPOINTS_POLL": "0.05",
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": str(PREFILL_S),
    "PDROUTER_PREFILL_RESPONSE_TIMEOUT": "1",
    "PDROUTER_PREFILL_CONNECT_TIMEOUT": "0.5",
    "PDROUTER_PREFILL_RETRIES": "2",
    # Short, so that a run sees pods left out and let in again many times.
    "PDROUTER_EJECT_TIME": "0.5",
    "PDROUTER_EJECT_LONGEST": "2",
    "PDROUTER_LAME_DUCK": "2.5",
    "PDROUTER_DRAIN": "8",
    # Full after the first hundreds of requests, so that it does not count as growth.
    "PDROUTER_PREFIX_INDEX_BYTES": "1Mi",
}
"""Settings of the routers."""


@dataclass(slots=True)
class Outages:
    """When something was away or went away: what that breaks is nobody's fault."""

    _spans: list[list[float]] = field(default_factory=list)

    @contextmanager
    def note(self) -> Iterator[None]:
        """Note an outage that lasts as long as the block."""
        span = [time.monotonic(), float("inf")]
        self._spans.append(span)
        try:
            yield
        finally:
            span[1] = time.monotonic()

    def overlap(self, begun: float, ended: float) -> bool:
        """Return whether there was one between these times."""
        return any(start <= ended and begun <= end for start, end in self._spans)


@dataclass(slots=True)
class RouterPlace:
    """A place where a router runs: always at the same port, one process after the other.

    Attributes:
        environment: settings of the router.
        accidents: what it has logged of exceptions and errors.
        router: the router that runs.
    """

    environment: Mapping[str, str]
    accidents: list[str] = field(default_factory=list)
    router: RouterProcess | None = None
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Start a router, and wait until it serves."""
        self.router = await self._running.enter_async_context(
            run_router(self.environment, self._read_line)
        )

    async def end(self, number: signal.Signals) -> None:
        """End the router with a signal, and wait for its end; after a time it is killed."""
        if self.router is not None:
            self.router.process.send_signal(number)
            try:
                async with asyncio.timeout(_STOP_S):
                    await self.router.process.wait()
            finally:
                await self.close()

    async def close(self) -> None:
        """Kill what runs."""
        self.router = None
        await self._running.aclose()

    def _read_line(self, line: bytes) -> None:
        if any(mark in line for mark in _FAILED):
            self.accidents.append(line.decode(errors="replace").strip())


@dataclass(slots=True)
class EnvoyPlace:
    """A place where Envoy runs: always at the same port, one process after the other."""

    bootstrap: str
    listener: Address
    process: EnvoyProcess | None = None
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        """Start an Envoy, and wait until it accepts requests."""
        self.process = await self._running.enter_async_context(EnvoyProcess.run(self.bootstrap))

    async def close(self) -> None:
        """End it: all requests are cut."""
        self.process = None
        await self._running.aclose()


@dataclass(frozen=True, slots=True)
class Installation:
    """All of it.

    Attributes:
        prefill: prefill engines, by roleset.
        decode: decode engines, by roleset.
        steady: the router that runs from the beginning to the end, and is looked at for leaks.
        replaced: the router that is stopped and killed.
        envoy: the Envoy in front.
        outages: when something was away.
        endpoints_file: the file that lists the pods.
        connector: how engines hand blocks over.
        together: whether both legs run at once, so that one that breaks ends the other.
        envoy_up: set while Envoy accepts requests.
    """

    prefill: Mapping[str, Sequence[SimulatedEngine]]
    decode: Mapping[str, Sequence[SimulatedEngine]]
    steady: RouterPlace
    replaced: RouterPlace
    envoy: EnvoyPlace
    endpoints_file: Path
    connector: KvConnector
    together: bool = False
    outages: Outages = field(default_factory=Outages)
    envoy_up: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where clients send requests, without a path."""
        return f"http://{self.envoy.listener}"

    @property
    def prefill_engines(self) -> tuple[SimulatedEngine, ...]:
        """All prefill engines."""
        return tuple(engine for engines in self.prefill.values() for engine in engines)

    @property
    def decode_engines(self) -> tuple[SimulatedEngine, ...]:
        """All decode engines."""
        return tuple(engine for engines in self.decode.values() for engine in engines)

    @property
    def engines(self) -> tuple[SimulatedEngine, ...]:
        """All engines."""
        return (*self.prefill_engines, *self.decode_engines)

    @property
    def routers(self) -> tuple[RouterProcess, ...]:
        """The routers that run."""
        places = (self.steady, self.replaced)
        return tuple(place.router for place in places if place.router is not None)

    def find_roleset(self, engine: SimulatedEngine) -> str:
        """Return which roleset an engine is in."""
        (name,) = (
            name
            for name in _ROLESETS
            if engine in self.prefill[name] or engine in self.decode[name]
        )
        return name

    def list_pods(self, listed: Sequence[SimulatedEngine]) -> None:
        """Write the file that lists the pods; each roleset keeps its name."""
        rolesets = [
            {
                "name": name,
                "prefill": [describe_engine(each) for each in self.prefill[name] if each in listed],
                "decode": [describe_engine(each) for each in self.decode[name] if each in listed],
            }
            for name in _ROLESETS
        ]
        software = self.engines[0].config.engine
        wire = {"kv_connector": self.connector} if software == "vllm" else {"engine": software}
        model = {
            "name": MODEL,
            **wire,
            "rolesets": [each for each in rolesets if each["prefill"] or each["decode"]],
        }
        temporary = self.endpoints_file.with_suffix(".new")
        temporary.write_text(yaml.safe_dump({"models": [model]}))
        temporary.replace(self.endpoints_file)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What kind of installation it is.

    Attributes:
        connector: how engines hand blocks over.
        routing: how Envoy reaches the chosen pod.
        together: whether both legs run at once.
        settings: settings of the routers beside those that all have.
    """

    connector: KvConnector
    routing: Routing
    together: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def run_installation(scenario: Scenario) -> AsyncIterator[Installation]:
    """Run an installation around a block, all of it on loopback."""
    connector = scenario.connector
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdrouter-")))
        endpoints_file = directory / "endpoints.yaml"
        hosts = _choose_hosts()
        prefill = {name: _make_engines("prefill", connector, hosts) for name in _ROLESETS}
        decode = {name: _make_engines("decode", connector, hosts) for name in _ROLESETS}
        steady, replaced = (
            _make_place(endpoints_file, scenario.settings, next(hosts)) for _ in range(2)
        )
        listener = Address(next(hosts), _PORT)
        envoy = EnvoyPlace("", listener)
        made = Installation(
            prefill, decode, steady, replaced, envoy, endpoints_file, connector, scenario.together
        )
        for engine in made.engines:
            await engine.start()
            stack.push_async_callback(engine.stop)
        made.list_pods(made.engines)
        for place in (steady, replaced):
            stack.push_async_callback(place.close)
            await place.start()
        envoy.bootstrap = await asyncio.to_thread(_write_bootstrap, made, scenario.routing)
        stack.push_async_callback(envoy.close)
        await envoy.start()
        made.envoy_up.set()
        yield made


def _choose_hosts() -> Iterator[str]:
    """Give addresses of loopback that nobody else has, so that no port is taken meanwhile.

    Engines, routers and Envoy have each its own, as nodes apart do.
    """
    network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
    return (f"{network}.{number}" for number in range(1, 255))


def _make_place(endpoints_file: Path, settings: Mapping[str, str], host: str) -> RouterPlace:
    return RouterPlace(
        {
            **SETTINGS,
            **settings,
            "PDROUTER_ENDPOINTS": str(endpoints_file),
            "PDROUTER_GRPC_BIND": f"{host}:{_PORT}",
        }
    )


def _make_engines(
    role: EngineRole, connector: KvConnector, hosts: Iterator[str]
) -> tuple[SimulatedEngine, ...]:
    return tuple(
        SimulatedEngine(
            EngineConfig(
                role=role,
                models=(MODEL,),
                host=next(hosts),
                kv_connector=connector,
                prefill_tokens_per_s=20_000,
                itl_ms=2,
                kv_lease_s=LEASE_S,
                peer_timeout_s=LEASE_S,
                request_log_size=200,
            )
        )
        for _ in range(_PER_ROLE)
    )


def _write_bootstrap(installation: Installation, routing: Routing) -> str:
    decode = (Address.parse(engine.address) for engine in installation.decode_engines)
    config = EnvoyConfig(
        routers=tuple(
            Address.parse(each) for router in installation.routers for each in router.addresses
        ),
        listen=installation.envoy.listener,
        admin=Address(_LOOPBACK, 0),
        routing=routing,
        decode=tuple(decode) if routing is Routing.OVERRIDE_HOST else (),
        prefill_timeout_s=PREFILL_S,
        decode_silence_timeout_s=_SILENCE_S,
    )
    return to_yaml(build_bootstrap(config))
