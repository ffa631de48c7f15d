"""SGLang's rooms: where a prefill and a decode engine meet for one prompt.

Source: SGLang 0.5.23 `disaggregation/`. Both legs name a room that nobody has used. Whichever comes
first waits for the other; the prefill engine computes once both are there, and sends. An engine is
never told that the other has failed: it waits until its own time is over.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.refusal import ContractViolated, Refused

_REMEMBERED = 10_000


@dataclass(slots=True)
class _Room:
    """One meeting; it lasts until both legs have left it."""

    digest: str = ""
    occupants: int = 0
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)


class RoomStore:
    """The rooms of a prefill engine."""

    def __init__(self, metrics: EngineMetrics, timeout_s: float) -> None:
        """Start without a room.

        Args:
            metrics: Counts what goes wrong.
            timeout_s: Seconds for which either leg waits for the other.
        """
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._rooms: dict[int, _Room] = {}
        self._used: OrderedDict[int, None] = OrderedDict()

    @property
    def open(self) -> int:
        """How many rooms have a leg that has not left."""
        return len(self._rooms)

    @asynccontextmanager
    async def prefill(self, numbers: Sequence[int], digest: str) -> AsyncIterator[None]:
        """Wait for the decode legs of all rooms; the block computes, then the blocks are sent.

        Args:
            numbers: The rooms of the request, one for each of its choices and prompts.
            digest: The prompt's identity.

        Raises:
            ContractViolated: A room was used before.
            Refused: No decode engine came in time.
        """
        for number in numbers:
            if number in self._used:
                message = f"bootstrap_room {number} has been used"
                raise ContractViolated("room_reused", 400, message, param="bootstrap_room")
        for number in numbers:
            self._remember(number)
        with self._enter(numbers) as rooms:
            for room in rooms:
                room.digest = digest
            try:
                async with asyncio.timeout(self._timeout_s):
                    for room in rooms:
                        await room.joined.wait()
            except TimeoutError:
                self._metrics.room_timeouts.inc()
                raise Refused(500, "no decode engine has joined the room in time") from None
            yield
            for room in rooms:
                room.sent.set()

    async def join(self, numbers: Sequence[int], digest: str) -> bool:
        """Wait for the blocks of all rooms, as a decode engine does.

        Args:
            numbers: The rooms.
            digest: The identity of the decode leg's prompt.

        Returns:
            Whether that is the prompt which was computed there.
        """
        with self._enter(numbers) as rooms:
            for room in rooms:
                room.joined.set()
            for room in rooms:
                await room.sent.wait()
            return all(room.digest == digest for room in rooms)

    @contextmanager
    def _enter(self, numbers: Sequence[int]) -> Iterator[list[_Room]]:
        rooms = [self._rooms.setdefault(number, _Room()) for number in numbers]
        for room in rooms:
            room.occupants += 1
        try:
            yield rooms
        finally:
            for number, room in zip(numbers, rooms, strict=True):
                room.occupants -= 1
                if not room.occupants:
                    self._rooms.pop(number, None)

    def _remember(self, number: int) -> None:
        self._used[number] = None
        if len(self._used) > _REMEMBERED:
            self._used.popitem(last=False)
