"""The side leg of a request whose legs run at once, as the last leg waits for it."""

import asyncio

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engines.split import PeerFacts
from pdrouter.serving.leg_try import TryResult
from pdrouter.serving.statuses import Speaks, judge


class Companion:
    """One try of a side leg that runs beside the last one.

    Attributes:
        pod: the pod that it runs on.
        peer: what is known of that pod's engine.
        progress: how far its POST has come.
        request_id: the id that both legs have.
        tried: how it has ended; None while it has not.
        committed: whether the last leg is on its way, so that it cannot be tried elsewhere.
        excused: whether it is not to blame if it ends without an answer.
        joined: whether the client gets the last leg's answer: this one's is to be read to its end.
    """

    __slots__ = (
        "_ended",
        "_trusts_head",
        "committed",
        "excused",
        "joined",
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
        self.progress = PostProgress(drains=trusts_head)
        self.request_id = ""
        self.tried: TryResult | None = None
        self.committed = False
        self._trusts_head = trusts_head
        self.excused = False
        self.joined = False
        self._ended = asyncio.Event()

    @property
    def good(self) -> bool:
        """Whether the head of its answer is there, and good."""
        return judge(self.progress.status) is Speaks.DONE

    @property
    def timed_out(self) -> bool:
        """Whether its engine was waited for in vain, perhaps since the other one did not come."""
        return self.tried is not None and self.tried.attempt.failure is FailureKind.TIMEOUT

    def end(self) -> None:
        """Let nobody wait for more than has come."""
        self.progress.sent.set()
        self.progress.answered.set()
        self._ended.set()

    async def wait_good(self) -> None:
        """Return once its answer is good, as far as that must be known; else, once it has ended."""
        await self.progress.answered.wait()
        if not (self._trusts_head and self.good):
            await self._ended.wait()
