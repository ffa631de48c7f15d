"""Gets to know the engines of side legs, as far as their wires need it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from pdrouter.cluster.pods import Pod, format_address
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.split import NOTHING, HandoffInvalid, Inquiry, PeerFacts, Split
from pdrouter.load.peers import PeerKnowledge
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.leg_outcome import LegAnswer

_OK = 200
_LARGEST = 64 * 1024
"""Bytes of what an engine says of itself."""

_Outcome: TypeAlias = PeerFacts | PostFailed | None


@dataclass(frozen=True, slots=True)
class Introductions:
    """Asks engines what they are, or takes it from their answers. One for the whole process.

    Attributes:
        client: sends what they are asked.
        knowledge: what is known of them.
    """

    client: EngineClient
    knowledge: PeerKnowledge = field(default_factory=PeerKnowledge)
    _asked: "dict[str, asyncio.Future[_Outcome]]" = field(default_factory=dict, init=False)

    async def meet(self, pod: Pod, split: Split, deadline: float) -> PeerFacts | None:
        """Return what a wire needs to know of an engine; None if only its answers can tell.

        Args:
            pod: the engine's pod.
            split: the wire.
            deadline: when it is too late, on the monotonic clock.

        Raises:
            PostFailed: the engine was asked in vain.
        """
        if not split.needs_peer:
            return NOTHING
        facts = self.knowledge.find(pod)
        if facts is not None:
            return facts
        inquiry = split.inquire(pod)
        return None if inquiry is None else await self._ask_once(pod, split, inquiry, deadline)

    def take(self, answer: LegAnswer, split: Split, asked: float) -> None:
        """Learn from the answer to a side leg.

        Args:
            answer: the answer.
            split: the wire.
            asked: when the leg was begun, by the clock of the knowledge.
        """
        facts = split.learn_peer(answer)
        if facts is not None:
            self.knowledge.learn(answer.pod, facts, asked)

    def doubt(self, pod: Pod) -> None:
        """Note that an engine has failed: it may be another one when it answers again."""
        self.knowledge.doubt(pod.uid)

    async def _ask_once(
        self, pod: Pod, split: Split, inquiry: Inquiry, deadline: float
    ) -> PeerFacts:
        """Ask an engine, or wait for what another request has asked it."""
        while (asked := self._asked.get(pod.uid)) is not None:
            outcome = await asyncio.shield(asked)
            if isinstance(outcome, PostFailed):
                del asked
                try:
                    raise outcome
                finally:
                    del outcome  # It knows this frame, and would know itself by it.
            if outcome is not None:
                return outcome
        asked = self._asked[pod.uid] = asyncio.get_running_loop().create_future()
        began, asking = self.knowledge.clock(), time.monotonic()
        try:
            told = await self._ask(pod, split, inquiry, deadline)
            asked.set_result(told)
        except PostFailed as failed:
            hasty = deadline - asking < inquiry.timeout_s
            if not (hasty and failed.kind is FailureKind.TIMEOUT):
                asked.set_result(failed)
            raise
        finally:
            del self._asked[pod.uid]
            if not asked.done():  # Whoever asked has left, or had less time: the next one asks.
                asked.set_result(None)
            del asked  # It knows of a failure, and that this frame.
        self.knowledge.learn(pod, told, began)
        return told

    async def _ask(self, pod: Pod, split: Split, inquiry: Inquiry, deadline: float) -> PeerFacts:
        address = pod.address
        if inquiry.port is not None:
            address = format_address(pod.ip, inquiry.port)
        total_s = min(inquiry.timeout_s, max(0.001, deadline - time.monotonic()))
        answer = await self.client.get(
            address, inquiry.path, total_s, plain=inquiry.port is not None
        )
        if answer.status != _OK:
            message = f"{address}{inquiry.path} answered {answer.status}"
            raise PostFailed(FailureKind.TRANSPORT, message)
        if len(answer.body) > _LARGEST:
            message = f"{address}{inquiry.path} answered with {len(answer.body)} bytes"
            raise PostFailed(FailureKind.TOO_LARGE, message)
        try:
            return split.read_peer(pod, answer.body)
        except HandoffInvalid as invalid:
            message = f"{address}{inquiry.path}: {invalid}"
            raise PostFailed(FailureKind.TRANSPORT, message) from None
