"""Who gets a place in the engine next: who came first, or who has the lowest priority."""

import asyncio
from heapq import heappop, heappush
from itertools import count

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.refusal import Refused, malformed

PRIORITY_HEADER = "x-vllm-priority"


class Turns:
    """Places that are taken and given back; those who wait get them in turn."""

    def __init__(self, places: int, *, by_priority: bool) -> None:
        """Begin with all places free.

        Args:
            places: How many there are.
            by_priority: Whether the lowest priority comes first; else who waits longest does.
        """
        self._free = places
        self._by_priority = by_priority
        self._numbers = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def take(self, priority: int) -> None:
        """Wait for a place; a wait that is cancelled takes none."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        rank = priority if self._by_priority else 0
        heappush(self._waiting, (rank, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Let the next one have a place."""
        while self._waiting:
            _, _, turn = heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def read_priority(members: Members, header: str | None, config: EngineConfig) -> int:
    """Give the priority of a request, in vLLM's words of refusal if the engine takes none.

    Args:
        members: The body.
        header: What `x-vllm-priority` says, which goes before the body.
        config: The engine.

    Raises:
        Refused: It is no whole number, or not to be had.
    """
    value = members.get("priority", 0) if header is None else header
    try:
        priority = int(value)
    except (TypeError, ValueError):
        raise malformed("Input should be a valid integer", "priority") from None
    if priority and config.priorities == "refused":
        raise Refused(400, f"Got priority {priority} but Priority scheduling is not enabled.")
    return priority
