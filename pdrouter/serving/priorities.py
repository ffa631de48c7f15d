"""Tells engines when requests are due, and finds out which of them take that."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from pdrouter.bounded import make_room
from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import PostFailed
from pdrouter.engines.registry import can_rank, find_question
from pdrouter.engines.split import Leg
from pdrouter.engines.vllm.priority import MEMBER, is_refusal
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.openai.body import encode
from pdrouter.openai.engine_errors import read_error_message
from pdrouter.openai.headers import VLLM_PRIORITY
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.drains import Drains
from pdrouter.serving.engine_client import EngineClient, address_rank
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.statuses import Speaks, judge
from pdrouter.settings.choices import Priority

_OFF = Priority.OFF
_ANSWER_S = 10.0
_AGAIN_S = 10.0
"""Seconds after which an engine is asked again that has not said what it does."""
_DOUBT_S = 1.0
"""Seconds after which one is asked again that has refused what may have had another fault."""
_AT_ONCE = 64
_MOST = 4096
_PATH = "/v1/completions"


class PriorityObserver(Protocol):
    """Is told which engines take no priorities. Must not raise."""

    def priority_refused(self, model: str) -> None:
        """An engine of the model has refused one."""


@dataclass(frozen=True, slots=True)
class PriorityRules:
    """What an operator decides about priorities.

    Attributes:
        mode: which engines are told.
        trusts_clients: whether what a client says goes before what the router does.
    """

    mode: Priority = Priority.OFF
    trusts_clients: bool = False

    def keep(self, headers: Iterable[str]) -> tuple[str, ...]:
        """Return those of these headers of clients that engines may get."""
        dropped = self.dropped_headers
        return tuple(name for name in headers if name not in dropped) if dropped else tuple(headers)

    @property
    def dropped_headers(self) -> tuple[str, ...]:
        """Headers of clients that no engine gets."""
        drops = self.mode is not Priority.OFF and not self.trusts_clients
        return (VLLM_PRIORITY,) if drops else ()


class Priorities:
    """Writes priorities into requests. One for the whole process.

    An engine that takes none may refuse a request that has one. A prefill leg is then sent again
    without. What Envoy sends, and what runs beside it, cannot be: such legs have a priority only
    where the engine is known to take it, and the router asks those of which it does not know.

    Attributes:
        rules: what the operator decided.
        questions: own what is being asked.
    """

    def __init__(
        self,
        client: EngineClient,
        knowledge: PriorityKnowledge,
        observer: PriorityObserver,
        rules: PriorityRules,
    ) -> None:
        """Begin with nobody asked.

        Args:
            client: sends the questions.
            knowledge: remembers what engines do.
            observer: is told of refusals.
            rules: what the operator decided.
        """
        self.rules = rules
        self.questions = Drains(_ANSWER_S, _AT_ONCE)
        self._client = client
        self._knowledge = knowledge
        self._observer = observer
        self._asked: dict[str, float] = {}

    def take_over(self, request: InferenceRequest, headers: Mapping[str, str]) -> InferenceRequest:
        """Return the request without its client's own priority, where the router's counts."""
        if self.rules.mode is _OFF:
            return request
        if self.rules.trusts_clients and (MEMBER in request.body or VLLM_PRIORITY in headers):
            return request
        return request.rank(None)

    def rank(
        self,
        request: InferenceRequest,
        leg: Leg,
        pods: tuple[Pod, ...],
        record: RequestRecord,
        headers: Mapping[str, str],
        *,
        once: bool,
    ) -> InferenceRequest:
        """Return the request as a leg's engine gets it: with its priority, if it takes that.

        Args:
            request: the request.
            leg: the leg.
            pods: the pod that gets it, and others that may in its place.
            record: has the priority, and learns which legs have it.
            headers: the client's headers for engines, should these be asked.
            once: whether it cannot be sent again.
        """
        priority, path = record.priority, request.endpoint.path
        if not request.ranked or priority is None:
            return request
        ask = self.rules.mode is Priority.AUTO and once
        for pod in pods:
            known = self._knowledge.find(pod) if can_rank(pod.engine, path) else False
            if known is None and ask:
                self._ask_once(pod, request.engine_model or request.model, headers)
            if known is False or (known is None and ask):
                return request
        record.ranked_legs = (*record.ranked_legs, leg)
        return request.rank(priority)

    def is_refused(self, request: InferenceRequest, answer: EngineAnswer | None) -> bool:
        """Return whether an engine has refused a request for its priority."""
        if request.priority is None or answer is None:
            return False
        return is_refusal(answer.status, read_error_message(answer.body))

    def note_taken(self, pod: Pod) -> None:
        """Note that an engine has carried out a leg that had a priority."""
        self._knowledge.note(pod, takes=True)

    def note_refused(self, pod: Pod, model: str) -> None:
        """Note that an engine refuses with a priority what it does not refuse without."""
        self._knowledge.note(pod, takes=False)
        self._observer.priority_refused(model)

    def doubt(self, pod: Pod, model: str, headers: Mapping[str, str]) -> None:
        """Ask an engine again that has refused what Envoy has sent, perhaps for its priority.

        It is more likely that something else was wrong with the request: what is known holds until
        the engine says otherwise, or else bad requests of one client would make it forgotten.

        Args:
            pod: the engine's pod.
            model: what the engine calls the model.
            headers: the client's headers for engines.
        """
        if self.rules.mode is Priority.AUTO:
            self._ask_once(pod, model, headers, _DOUBT_S)

    def _ask_once(
        self, pod: Pod, model: str, headers: Mapping[str, str], again_s: float = _AGAIN_S
    ) -> None:
        now = self._knowledge.clock()
        if now - self._asked.get(pod.uid, -again_s) < again_s:
            return
        if self.questions.outstanding >= _AT_ONCE:
            return
        make_room(self._asked, pod.uid, _MOST)
        self._asked[pod.uid] = now
        self.questions.take(asyncio.create_task(self._ask(pod, model, headers)))

    async def _ask(self, pod: Pod, model: str, headers: Mapping[str, str]) -> None:
        """Ask an engine for one token, with a priority."""
        question = find_question(pod.engine)
        if question is None:
            return
        path, members = question(_PATH, model)
        body = Pieces((encode({**members, MEMBER: 1}),))
        try:
            answer = await self._client.post(
                pod.address,
                path,
                {
                    **headers,
                    "content-type": "application/json",
                    "x-request-id": f"pdrouter-question-{uuid4()}",
                    **address_rank(pod),
                },
                body,
                _ANSWER_S,
            )
        except PostFailed:
            return  # It is asked again with a later request.
        if is_refusal(answer.status, read_error_message(answer.body)):
            self.note_refused(pod, model)
        elif judge(answer.status) is Speaks.DONE:
            self.note_taken(pod)
