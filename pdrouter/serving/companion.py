"""The side leg of a request whose legs run at once, as the last leg waits for it."""

import asyncio

from pdrouter.serving.engine_client import EngineAnswer, PostProgress
from pdrouter.serving.leg_outcome import Attempt, LegAnswer

_LEAST_ERROR = 400


class Companion:
    """One try of a side leg that runs beside the last one.

    Attributes:
        progress: how far its POST has come.
        request_id: the id that both legs have.
        attempt: how it has ended; None while it has not.
        answer: the engine's answer, of any status.
        done: what the leg was for; None if it was not carried out.
        committed: whether the last leg is on its way, so that it cannot be tried elsewhere.
    """

    __slots__ = ("_ended", "answer", "attempt", "committed", "done", "progress", "request_id")

    def __init__(self) -> None:
        """Begin before anything is sent."""
        self.progress = PostProgress()
        self.request_id = ""
        self.attempt: Attempt | None = None
        self.answer: EngineAnswer | None = None
        self.done: LegAnswer | None = None
        self.committed = False
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Let nobody wait for more than has come."""
        self.progress.sent.set()
        self.progress.answered.set()
        self._ended.set()

    async def wait_good(self) -> None:
        """Return once the head of its answer is good; otherwise, once it has ended."""
        await self.progress.answered.wait()
        if not 0 < self.progress.status < _LEAST_ERROR:
            await self._ended.wait()
