"""Carries out what the plan says goes wrong, while requests go on."""

import asyncio
import signal
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

import msgspec

from benchmarks.chaos.installation import Installation
from benchmarks.chaos.plan import Disturbance, Kind
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.transfer import FETCH_PATH
from pdrouter.tools.simulation.transfers import REGISTER_PATH

_STAYS = 0.75
"""Share of the pods that are listed after a change."""
_AWAY_S = 1.0
_TRANSFER_PATHS = {"nixl-push": REGISTER_PATH, "trtllm": REGISTER_PATH}
"""Where blocks are asked for, if not as on NIXL's pull wire."""


@dataclass(slots=True)
class Trouble:
    """Disturbs an installation.

    Attributes:
        installation: what is disturbed.
        tasks: own what takes a while.
    """

    installation: Installation
    tasks: asyncio.TaskGroup
    _places: defaultdict[object, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )

    def disturb(self, disturbance: Disturbance) -> None:
        """Let something go wrong; what takes a while goes on by itself."""
        match disturbance.kind:
            case Kind.ENGINE_RESTART | Kind.ENGINE_OUTAGE:
                self.tasks.create_task(self._restart_engine(disturbance))
            case Kind.ROUTER_STOP | Kind.ROUTER_KILL:
                self.tasks.create_task(self._restart_router(disturbance.kind))
            case Kind.ENVOY_RESTART:
                self.tasks.create_task(self._restart_envoy())
            case Kind.CHURN:
                self._change_pods(Random(disturbance.pick))
            case Kind.RECOVERY:
                self._pick(disturbance).faults.clear()
            case Kind.IDLE_CLOSE:
                self._pick(disturbance).close_idle_connections()
            case _:
                if disturbance.fault is not None:
                    self._pick(disturbance).faults.set(self._suit(disturbance.fault))

    def end(self) -> None:
        """Let all engines be well, and all pods be listed."""
        for engine in self.installation.engines:
            engine.faults.clear()
        self.installation.list_pods(self.installation.engines)

    def _suit(self, fault: Fault) -> Fault:
        """Return a fault of transfers as one of the path that the engines' wire has for them."""
        if fault.path != FETCH_PATH:
            return fault
        path = _TRANSFER_PATHS.get(self.installation.connector, FETCH_PATH)
        return msgspec.structs.replace(fault, path=path)

    def _pick(self, disturbance: Disturbance) -> SimulatedEngine:
        match disturbance.kind:
            case Kind.PREFILL_FAULT | Kind.TRANSFER_FAULT:
                engines = self.installation.prefill_engines
            case Kind.DECODE_FAULT:
                engines = self.installation.decode_engines
            case _:
                engines = self.installation.engines
        return engines[int(disturbance.pick * len(engines))]

    def _change_pods(self, random: Random) -> None:
        listed = [each for each in self.installation.engines if random.random() < _STAYS]
        # Where nothing can serve there is nothing to see.
        listed.append(random.choice(self.installation.decode_engines))
        self.installation.list_pods(listed)

    async def _restart_engine(self, disturbance: Disturbance) -> None:
        engine = self._pick(disturbance)
        async with self._places[engine]:
            with self.installation.outages.note():
                await engine.stop()
                if disturbance.kind is Kind.ENGINE_OUTAGE:
                    await asyncio.sleep(_AWAY_S)
                await engine.start()

    async def _restart_router(self, kind: Kind) -> None:
        place = self.installation.replaced
        async with self._places["router"]:
            if kind is Kind.ROUTER_KILL:
                with self.installation.outages.note():
                    await place.end(signal.SIGKILL)
            else:
                # Who is asked to end ends what is open: nothing may be lost by it.
                await place.end(signal.SIGTERM)
            await place.start()

    async def _restart_envoy(self) -> None:
        async with self._places["envoy"]:
            with self.installation.outages.note():
                self.installation.envoy_up.clear()
                await self.installation.envoy.close()
                await self.installation.envoy.start()
            self.installation.envoy_up.set()
