"""The side leg of a request whose legs run at once, as the last leg waits for it."""

import asyncio

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import PeerFacts
from pdrouter.serving.engine_client import PostProgress
from pdrouter.serving.leg_outcome import Tried

_LEAST_ERROR = 400


class Companion:
    """One try of a side leg that runs beside the last one.

    Attributes:
        pod: the pod that it runs on.
        peer: what is known of that pod's engine.
        progress: how far its POST has come.
        request_id: the id that both legs have.
        tried: how it has ended; None while it has not.
        committed: whether the last leg is on its way, so that it cannot be tried elsewhere.
    """

    __slots__ = (
        "_ended",
        "_trusts_head",
        "committed",
        "peer",
        "pod",
        "progress",
        "request_id",
        "tried",
    )

    def __init__(self, pod: Pod, peer: PeerFacts, *, trusts_head: bool) -> None:
        """Begin before anything is sent.

        Args:
            pod: the pod that it runs on.
            peer: what is known of that pod's engine.
            trusts_head: whether the head of its answer says that it is good.
        """
        self.pod = pod
        self.peer = peer
        self.progress = PostProgress()
        self.request_id = ""
        self.tried: Tried | None = None
        self.committed = False
        self._trusts_head = trusts_head
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Let nobody wait for more than has come."""
        self.progress.sent.set()
        self.progress.answered.set()
        self._ended.set()

    async def wait_good(self) -> None:
        """Return once its answer is good, as far as that must be known; else, once it has ended."""
        await self.progress.answered.wait()
        if not (self._trusts_head and 0 < self.progress.status < _LEAST_ERROR):
            await self._ended.wait()
