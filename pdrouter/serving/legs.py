"""Runs side legs: attempts on one pod after another, within one deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import count

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Leg, Placement, Split
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.openai.engine_errors import read_error_message
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.retry_after import read_retry_after
from pdrouter.openai.usage import read_usage
from pdrouter.routing.decision import Choice
from pdrouter.routing.router import Router
from pdrouter.serving.engine_client import EngineAnswer, EngineClient, FailureKind, PostFailed
from pdrouter.serving.leg_outcome import Attempt, LegAnswer, LegFailed, LegRefused
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import RequestRecord, Retry
from pdrouter.serving.statuses import BUSY, Speaks, judge, rank
from pdrouter.serving.steps import StepTimes

_FREE_REFUSALS = 4
"""Pods that may say that it is them, before the tries that they cost count as retries.

They answer at once, and a pod that is busy or lacks the adapter should not keep a request from one
that is not, and does not; but a wrong key must not be tried on every pod there is.
"""


@dataclass(frozen=True, slots=True)
class SideLegs:
    """Runs the legs that Envoy does not run. One for the whole process.

    Attributes:
        client: sends the requests.
        cache: the pods.
        router: chooses another pod after a failure, and knows the pods' condition.
        splits: how engines split requests.
        lessons: where what is learnt goes.
        total_s: seconds for all attempts together.
        retries: how many further pods are tried after a failure.
        budget: how many of all requests may be tried again.
    """

    client: EngineClient
    cache: PodCache
    router: Router
    splits: Splits
    lessons: LegLessons
    total_s: float
    retries: int
    budget: RetryBudget

    async def run(
        self,
        leg: Leg,
        request: InferenceRequest,
        chosen: OpenDecision,
        headers: Mapping[str, str],
        record: RequestRecord,
    ) -> LegAnswer:
        """Carry out a leg. Cancelling closes the connection: the engine stops its work.

        Args:
            leg: the leg.
            request: the request.
            chosen: its pods; after a failure, there may be others for all legs.
            headers: headers for the engine.
            record: gets what happens.

        Raises:
            LegRefused: the engine refused the request.
            LegFailed: all attempts failed.
        """
        state, routed = self.router.state, chosen.routed
        model = routed.pods.model
        posts = _Posts(self.client, leg, request, headers, record, total_s=self.total_s)
        attempts: list[Attempt] = []
        refusals: list[EngineAnswer] = []
        self.budget.count_request(request.model)
        choice = chosen.decision.find(leg)
        while choice is not None:
            pod, began = choice.pod, state.failures.clock()
            record.predicted_prefill_s = choice.seconds
            split = self.splits.find(pod.engine, pod.kv_connector)
            write = partial(_write_side_body, split, leg, request, chosen.decision.pods)
            # Engines compute in turn, so that a request behind its twin finds what that has
            # computed: the prompt counts as cached as soon as it is sent.
            expected = state.prefixes.add(routed.facts.prefix.hashes, pod.uid, choice.tokens)
            trial = state.failures.start_trial(pod.uid, leg)
            try:
                with trial, state.ledger.start(leg, pod.uid, choice.tokens) as scope:
                    attempt, answer = await posts.send(pod, write)
                    done = _read(attempt, answer)
                    if done is not None:
                        scope.complete(None if done.usage is None else done.usage.count_computed())
            except asyncio.CancelledError:
                self.lessons.outcomes.note_silence(pod, leg, began)
                raise
            if done is None:
                state.prefixes.discard(expected, pod.uid)
            attempts.append(attempt)
            self.lessons.note_attempt(attempt, request, model, record)
            if done is not None:
                self.lessons.note_answer(done, attempts, request, model, record)
                return done
            if answer is not None and attempt.speaks is not Speaks.FAILURE:
                refusals.append(answer)
            if attempt.speaks is Speaks.REQUEST or time.monotonic() >= posts.deadline:
                break
            choice = self._choose_other(attempts, refusals, request, chosen, record)
        raise self._give_up(attempts, refusals, request, routed.pods, record)

    def _choose_other(
        self,
        attempts: Sequence[Attempt],
        refusals: Sized,
        request: InferenceRequest,
        chosen: OpenDecision,
        record: RequestRecord,
    ) -> Choice | None:
        """Return the pod to try next; None if there is none, or enough have been tried.

        If it is of another roleset, the request is counted on another last pod from now on.
        """
        free = min(len(refusals), _FREE_REFUSALS) if self.retries else 0
        if len(attempts) - free > self.retries:
            return None
        # The view of now: the pod that failed may be gone from it, and others have come.
        pods = self.cache.view.models.get(request.model)
        if pods is None:
            return None
        routed, last = chosen.routed, chosen.decision.last.pod
        tried = [attempt.pod for attempt in attempts]
        failed = [attempt.pod for attempt in attempts if attempt.speaks is Speaks.FAILURE]
        other = self.router.choose_other(
            routed.strategy, routed.facts, routed.decision, pods, tried=tried, failed=failed
        )
        if other is None:
            return None
        if attempts[-1].burdens and not self.budget.take_retry(request.model):
            self.lessons.note_retry(Retry.OVER_BUDGET, record)
            return None
        now = self.router.state.failures.clock()
        chosen.change(structs.replace(routed, pods=pods, decision=other, at=now))
        same = other.last.pod.pairing == last.pairing
        self.lessons.note_retry(Retry.SAME_ROLESET if same else Retry.OTHER_PAIR, record)
        return other.find(attempts[-1].leg)

    def _give_up(
        self,
        attempts: Sequence[Attempt],
        refusals: Sequence[EngineAnswer],
        request: InferenceRequest,
        pods: ModelPods,
        record: RequestRecord,
    ) -> LegRefused | LegFailed:
        """Return how a leg ends that no pod has carried out."""
        if attempts[-1].speaks is Speaks.REQUEST:
            return LegRefused(attempts[-1].leg, refusals[-1])
        told = _choose_refusal(refusals, failures=len(attempts) - len(refusals))
        if told is not None:
            return LegRefused(attempts[-1].leg, told)
        return LegFailed(
            tuple(attempts),
            unsplittable=self.lessons.note_failure(attempts, request, pods, record),
            over_budget=Retry.OVER_BUDGET in record.retries,
        )


class _Posts:
    """The POSTs of one leg, within one deadline.

    The first carries the request's id; every further one a new id that begins with it, because
    engines refuse or mix up an id that they have seen.
    """

    __slots__ = ("_client", "_headers", "_ids", "_leg", "_path", "_steps", "deadline")

    def __init__(
        self,
        client: EngineClient,
        leg: Leg,
        request: InferenceRequest,
        headers: Mapping[str, str],
        record: RequestRecord,
        *,
        total_s: float,
    ) -> None:
        self._client = client
        self._leg = leg
        self._path = request.endpoint.path + request.query
        self._headers = headers
        self._ids = _number_ids(record.request_id)
        self._steps: StepTimes = record.steps
        self.deadline = time.monotonic() + total_s

    async def send(
        self, pod: Pod, write: Callable[[str], Pieces]
    ) -> tuple[Attempt, EngineAnswer | None]:
        """Try a pod; once more where it had closed the connection while that was idle.

        Args:
            pod: the pod.
            write: gives the body of a request with this id.
        """
        start, leg = time.monotonic(), self._leg
        stale = 0
        while True:
            request_id = next(self._ids)
            headers = {**self._headers, "x-request-id": request_id}
            remaining = max(0.001, self.deadline - time.monotonic())
            try:
                with self._steps.time(self._leg, waits=True):
                    answer = await self._client.post(
                        pod.address, self._path, headers, write(request_id), remaining
                    )
            except PostFailed as error:
                if error.stale and not stale:
                    stale += 1
                    continue
                seconds = time.monotonic() - start
                return Attempt(
                    leg, pod, request_id, None, error.kind, str(error), seconds, stale
                ), None
            seconds = time.monotonic() - start
            return _describe(leg, pod, request_id, answer, seconds=seconds, stale=stale), answer


def _write_side_body(
    split: Split, leg: Leg, request: InferenceRequest, pods: Mapping[Leg, Pod], request_id: str
) -> Pieces:
    return split.side_body(leg, request, Placement(pods, request_id))


def _describe(
    leg: Leg, pod: Pod, request_id: str, answer: EngineAnswer, *, seconds: float, stale: int
) -> Attempt:
    """Return an attempt that an engine has answered."""
    status = answer.status
    speaks = judge(status)
    if speaks is Speaks.DONE:
        return Attempt(leg, pod, request_id, status, None, "", seconds, stale)
    said = read_error_message(answer.body)
    message = f"the {leg} engine answered {status}{f': {said}' if said else ''}"
    failure = FailureKind.STATUS if speaks is Speaks.FAILURE else None
    retry_after = read_retry_after(answer.headers)
    return Attempt(leg, pod, request_id, status, failure, message, seconds, stale, retry_after)


def _read(attempt: Attempt, answer: EngineAnswer | None) -> LegAnswer | None:
    """Return what the leg was for; None if the attempt has not carried it out."""
    if answer is None or attempt.speaks is not Speaks.DONE:
        return None
    return LegAnswer(
        attempt.leg, attempt.pod, attempt.request_id, answer.body, read_usage(answer.body)
    )


def _choose_refusal(refusals: Sequence[EngineAnswer], *, failures: int) -> EngineAnswer | None:
    """Return which pod's refusal the client gets; None if it may not be the truth.

    If other pods have failed, they might have had what these lack: to be told that the model does
    not exist would send the client away for good.
    """
    told = [answer for answer in refusals if not failures or answer.status in BUSY]
    return max(told, key=lambda answer: rank(answer.status), default=None)


def _number_ids(request_id: str) -> Iterator[str]:
    yield request_id
    for number in count(2):
        yield f"{request_id}-{number}"
