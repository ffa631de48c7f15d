"""A process that takes as much as it gets for some time, and then tells what it got."""

import asyncio
import json
import sys
import time

from shared_counters import share

from pdrouter.users.counters import Demand, Measure, Quota

TAKERS = 6
"""What the process does at a time."""


async def count(url: str, name: str, requests: int, places: int, seconds: float) -> None:
    rate = Demand(Quota("user/ann/requests", Measure.REQUESTS, requests, 1.0))
    place = Demand(Quota("user/ann/concurrent", Measure.CONCURRENT, places, 0.0))
    passed: list[float] = []
    held: list[tuple[float, float]] = []
    left: list[int] = []
    until = time.time() + seconds

    async def take(taker: int) -> None:
        number = 0
        while time.time() < until:
            number += 1
            verdict = await shared.counters.take([rate, place], f"{name}-{taker}-{number}")
            if verdict.taken is None:
                assert verdict.refused is not None
                left.extend(
                    each.remaining
                    for each in verdict.standings
                    if each.quota == verdict.refused.quota
                )
                await asyncio.sleep(0.001)
                continue
            passed.append(verdict.taken.at)
            await asyncio.sleep(0.003)
            held.append((verdict.taken.at, time.time()))
            await shared.counters.release(verdict.taken)

    async with share(url) as shared:
        await asyncio.gather(*(take(taker) for taker in range(TAKERS)))
    json.dump({"passed": passed, "held": held, "left": left}, sys.stdout)


if __name__ == "__main__":
    url, name, requests, places, seconds = sys.argv[1:]
    asyncio.run(count(url, name, int(requests), int(places), float(seconds)))
