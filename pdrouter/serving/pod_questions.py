"""Asks pods that were left out, before a client's request tries them."""

import asyncio
from dataclasses import dataclass
from uuid import uuid4

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import PostFailed
from pdrouter.engines.registry import find_question
from pdrouter.load.failures import Part
from pdrouter.openai.body import encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.retry_after import read_retry_after
from pdrouter.serving.engine_client import EngineClient, address_rank
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.statuses import BUSY, Speaks, judge

_LOOK_S = 0.5
_ANSWER_S = 10.0
"""A pod that is left out has little to do: one that takes longer is not well."""
_AT_ONCE = 64
_ASKED = (Role.DECODE, Role.BOTH)
"""Whom Envoy sends requests to; the others may not be able to serve a request whole."""
_NOT_FOUND, _NOT_IMPLEMENTED = 404, 501


@dataclass(frozen=True, slots=True)
class PodQuestions:
    """Asks what the memory of failures wants to know. One for the whole process.

    Attributes:
        client: sends the requests.
        cache: the pods.
        outcomes: get the answers.
    """

    client: EngineClient
    cache: PodCache
    outcomes: PodOutcomes

    async def run(self) -> None:
        """Ask until cancelled."""
        failures, doubt = self.outcomes.failures, asyncio.Event()
        slots = asyncio.Semaphore(_AT_ONCE)
        failures.on_doubt = doubt.set
        async with asyncio.TaskGroup() as tasks:
            while True:
                for part, path in failures.take_due():
                    tasks.create_task(self._ask_in_turn(slots, part, path))
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await doubt.wait()
                except TimeoutError:
                    continue
                doubt.clear()

    async def _ask_in_turn(self, slots: asyncio.Semaphore, part: Part, path: str) -> None:
        async with slots:
            pod = next((pod for pod in self.cache.view.pods if pod.uid == part.uid), None)
            if pod is None:
                return  # What was remembered of it is forgotten.
            cause = None
            try:
                if pod.ready and pod.role in _ASKED:
                    cause = await self._ask(pod, part, path)
            finally:
                self.outcomes.note_asked(pod, part, cause)

    async def _ask(self, pod: Pod, part: Part, path: str) -> str:
        """Return what is wrong with a pod, in a word; nothing if it answers."""
        question = find_question(pod.engine)
        if question is None:
            return ""  # Only a request can tell.
        where, members = question(path, part.model or pod.model)
        headers = {
            "content-type": "application/json",
            # Several routers may ask an engine, which refuses an id that it is working on.
            "x-request-id": f"pdrouter-question-{uuid4()}",
            **address_rank(pod),
        }
        body = Pieces((encode(members),))
        try:
            answer = await self.client.post(pod.address, where, headers, body, _ANSWER_S)
        except PostFailed as failed:
            return str(failed.kind)
        retry_after = read_retry_after(answer.headers)
        if answer.status >= 400 and retry_after is not None:
            self.outcomes.failures.hold(part.uid, part.leg, retry_after)
        return _judge(answer, part)


def _judge(answer: EngineAnswer, part: Part) -> str:
    """Return what is wrong with a pod that gives such an answer; nothing if it is well.

    The question has no key, and may not fit the model: an engine that says so is there.
    """
    status = answer.status
    lacks = status == _NOT_FOUND and part.model
    fails = judge(status) is Speaks.FAILURE and status != _NOT_IMPLEMENTED
    return f"status-{status}" if fails or lacks or status in BUSY else ""
