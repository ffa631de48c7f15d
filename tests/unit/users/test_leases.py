"""Places that are held: what comes of those that end while they are renewed."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pdrouter.users.redis.leases import MAX_BATCH, Leases
from pdrouter.users.redis.link import Script


class SlowLink:
    """Answers when it is told to.

    Attributes:
        sent: keys of each script.
        answers: lets the scripts end.
    """

    def __init__(self) -> None:
        self.sent: list[Sequence[str]] = []
        self.answers = asyncio.Event()

    def call_when_up(self, call: Callable[[], None]) -> None:
        self.on_up = call

    async def run_script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> None:
        assert script.digest
        assert len(args) == 1 + len(keys)
        self.sent.append(keys)
        await self.answers.wait()


async def test_a_place_that_ends_while_it_is_renewed_is_released_once_more() -> None:
    link, late = SlowLink(), list[tuple[str, str]]()
    leases = Leases(link, lambda key, holder: late.append((key, holder)))  # type: ignore[arg-type]
    leases.hold("stays", ["k1"])
    leases.hold("ends", ["k1", "k2"])
    renewing = asyncio.create_task(leases.renew())
    await asyncio.sleep(0)
    leases.end("ends")
    link.answers.set()
    await renewing
    assert link.sent == [["k1", "k1", "k2"]]
    assert late == [("k1", "ends"), ("k2", "ends")]


async def test_a_place_that_ends_before_its_batch_is_not_renewed() -> None:
    link, late = SlowLink(), list[tuple[str, str]]()
    leases = Leases(link, lambda key, holder: late.append((key, holder)))  # type: ignore[arg-type]
    for number in range(MAX_BATCH + 2):
        leases.hold(str(number), [f"k{number}"])
    renewing = asyncio.create_task(leases.renew())
    await asyncio.sleep(0)
    leases.end(str(MAX_BATCH))
    link.answers.set()
    await renewing
    assert link.sent[1:] == [[f"k{MAX_BATCH + 1}"]]
    assert late == []
