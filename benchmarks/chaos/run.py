"""One run: warm up, disturb, let everything be well again, and look at what is left."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import aiohttp

from benchmarks.chaos.accounts import (
    Footprint,
    judge_engines,
    judge_growth,
    judge_logs,
    measure,
    read_counters,
    settle,
)
from benchmarks.chaos.clients import Clients
from benchmarks.chaos.installation import Scenario, run_installation
from benchmarks.chaos.plan import Ask, Disturbance, Manner, Plan, draw_plan
from benchmarks.chaos.tally import Breach, Tally
from benchmarks.chaos.trouble import Trouble

CLIENTS = 24
_WARM_UP_SHARE = 10
_GOOD_IN_A_ROW = 20
_MOST_TRIES = 400
_MOST_SECONDS_A_REQUEST = 0.5
_LEAST_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one run has shown.

    Attributes:
        plan: what was done.
        tally: what became of the requests.
        before: what the steady router occupied when it was warm.
        after: at the end.
        counters: what engines, and the routers that live at the end, have counted.
        tries: requests until so many in a row were answered, when all was well again.
        seconds: how long it took.
    """

    plan: Plan
    tally: Tally
    before: Footprint
    after: Footprint
    counters: Mapping[str, int]
    tries: int
    seconds: float


async def run_chaos(
    scenario: Scenario, seed: int, requests: int, tell: Callable[[str], None]
) -> Report:
    """Run it; bounded in time.

    Raises:
        TimeoutError: it took far too long.
    """
    plan, tally, begun = draw_plan(seed, requests), Tally(), time.monotonic()
    what = f"{scenario.connector}, {scenario.routing}"
    tell(f"{what}: {requests} requests, seed {seed}, plan {plan.fingerprint}")
    bound = _LEAST_SECONDS + requests * _MOST_SECONDS_A_REQUEST
    async with (
        asyncio.timeout(bound),
        run_installation(scenario) as installation,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), auto_decompress=False
        ) as session,
    ):
        clients = Clients(installation, session, tally)
        warm = requests // _WARM_UP_SHARE
        await _send(plan, range(warm), clients)
        await settle(installation, tally)
        before = await measure(installation)
        await _send(plan, range(warm, requests), clients)
        tries = await _recover(clients)
        await settle(installation, tally)
        after = await measure(installation, before)
        if tally.requests != requests:
            tally.note_broken(Breach.UNACCOUNTED, f"{tally.requests} of {requests}")
        judge_growth(before, after, tally)
        judge_engines(installation, tally)
        judge_logs(installation, tally)
        counters: Counter[str] = await read_counters(installation)
    return Report(plan, tally, before, after, counters, tries, time.monotonic() - begun)


async def _send(plan: Plan, numbers: range, clients: Clients) -> None:
    """Send these requests of a plan, and do what goes wrong before them; then end the trouble."""
    async with asyncio.TaskGroup() as tasks:
        trouble = Trouble(clients.installation, tasks)
        asks = _take(plan, numbers, trouble, clients.tally)
        async with asyncio.TaskGroup() as crowd:
            for _ in range(CLIENTS):
                crowd.create_task(_be_client(asks, clients))
    trouble.end()


def _take(plan: Plan, numbers: range, trouble: Trouble, tally: Tally) -> Iterator[Ask]:
    for number in numbers:
        disturbance: Disturbance | None = plan.disturbances.get(number)
        if disturbance is not None:
            tally.disturbances[disturbance.kind] += 1
            trouble.disturb(disturbance)
        yield plan.asks[number]


async def _be_client(asks: Iterator[Ask], clients: Clients) -> None:
    for ask in asks:
        await clients.send(ask)


async def _recover(clients: Clients) -> int:
    """Send requests, now that all is well, until they are answered; return how many it took."""
    well = Clients(clients.installation, clients.session, Tally())
    in_a_row = 0
    for number in range(_MOST_TRIES):
        answered = well.tally.answered
        await well.send(Ask(-number - 1, Manner.PLAIN, words=50, tokens=4, patience=1.0))
        in_a_row = in_a_row + 1 if well.tally.answered > answered else 0
        if in_a_row == _GOOD_IN_A_ROW:
            return number + 1
    clients.tally.note_broken(Breach.NO_RECOVERY, f"{well.tally.errors}")
    return _MOST_TRIES
