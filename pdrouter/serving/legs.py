"""Runs side legs: attempts on one pod after another, within one deadline."""

import asyncio
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Leg, Placement, Split
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.usage import read_usage
from pdrouter.routing.decision import Choice
from pdrouter.routing.router import Router
from pdrouter.serving.call import Call
from pdrouter.serving.companion import Companion
from pdrouter.serving.engine_client import EngineAnswer, EngineClient
from pdrouter.serving.leg_outcome import Attempt, LegAnswer, LegFailed, LegRefused
from pdrouter.serving.leg_posts import LegPosts
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import RequestRecord, Retry
from pdrouter.serving.statuses import BUSY, Speaks, rank

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
        routed = chosen.routed
        model = routed.pods.model
        posts = LegPosts(self.client, leg, request, headers, record, total_s=self.total_s)
        attempts: list[Attempt] = []
        refusals: list[EngineAnswer] = []
        self.budget.count_request(request.model)
        choice = chosen.decision.find(leg)
        while choice is not None:
            attempt, answer, done = await self._try(choice, posts, request, chosen)
            attempts.append(attempt)
            if done is not None:
                self.lessons.note_answer(done, attempts, request, model, record)
                return done
            if answer is not None and attempt.speaks is not Speaks.FAILURE:
                refusals.append(answer)
            if attempt.speaks is Speaks.REQUEST or time.monotonic() >= posts.deadline:
                break
            choice = self._choose_other(attempts, refusals, request, chosen, record)
        raise self._give_up(attempts, refusals, request, routed.pods, record)

    async def start(
        self,
        leg: Leg,
        request: InferenceRequest,
        chosen: OpenDecision,
        headers: Mapping[str, str],
        call: Call,
    ) -> str:
        """Begin a leg that runs beside the last one.

        On return its request is written to an engine: one that cannot be connected has cost another
        try, and no error. The rest is a task of the call, which fails with LegRefused or LegFailed
        if the leg does.

        Args:
            leg: the leg.
            request: the request.
            chosen: its pods; after a failure, there may be others for all legs.
            headers: headers for the engine.
            call: owns the task.

        Returns:
            The id that both legs have.

        Raises:
            LegRefused: the engine refused the request.
            LegFailed: all attempts failed.
        """
        record = call.record
        posts = LegPosts(self.client, leg, request, headers, record, total_s=self.total_s)
        attempts: list[Attempt] = []
        refusals: list[EngineAnswer] = []
        self.budget.count_request(request.model)
        choice = chosen.decision.find(leg)
        while choice is not None:
            companion = call.companion = Companion()
            call.start(self._accompany(companion, choice, posts, request, chosen))
            with record.steps.time(leg, waits=True):
                await companion.progress.sent.wait()
            attempt, answer = companion.attempt, companion.answer
            if attempt is None or companion.done is not None:
                companion.committed = True
                record.prefill_pod = choice.pod
                return companion.request_id
            attempts.append(attempt)
            if answer is not None and attempt.speaks is not Speaks.FAILURE:
                refusals.append(answer)
            if attempt.speaks is Speaks.REQUEST or time.monotonic() >= posts.deadline:
                break
            choice = self._choose_other(attempts, refusals, request, chosen, record)
        raise self._give_up(attempts, refusals, request, chosen.routed.pods, record)

    async def _accompany(
        self,
        companion: Companion,
        choice: Choice,
        posts: LegPosts,
        request: InferenceRequest,
        chosen: OpenDecision,
    ) -> None:
        """Carry out a try of a leg beside the last one; fail if that is on its way in vain."""
        pods, record = chosen.routed.pods, posts.record
        try:
            attempt, answer, done = await self._try(
                choice, posts, request, chosen, companion=companion
            )
            companion.attempt, companion.answer, companion.done = attempt, answer, done
            if done is not None:
                self.lessons.note_answer(done, (attempt,), request, pods.model, record)
            elif companion.committed:
                refusals = () if attempt.speaks is Speaks.FAILURE or answer is None else (answer,)
                ended = self._give_up((attempt,), refusals, request, pods, record)
                if isinstance(ended, LegFailed):
                    ended.committed = True
                raise ended
        finally:
            companion.end()

    async def _try(
        self,
        choice: Choice,
        posts: LegPosts,
        request: InferenceRequest,
        chosen: OpenDecision,
        *,
        companion: Companion | None = None,
    ) -> tuple[Attempt, EngineAnswer | None, LegAnswer | None]:
        """Try a leg on one pod, count it there meanwhile, and learn from it."""
        state, routed, record = self.router.state, chosen.routed, posts.record
        pod, leg, began = choice.pod, choice.leg, state.failures.clock()
        record.predicted_prefill_s = choice.seconds
        split = self.splits.find(pod.engine, pod.kv_connector)
        write = partial(_write_side_body, split, leg, request, chosen.decision.pods)
        # Engines compute in turn, so that a request behind its twin finds what that has computed:
        # the prompt counts as cached as soon as it is sent.
        expected = state.prefixes.add(routed.facts.prefix.hashes, pod.uid, choice.tokens)
        trial = state.failures.start_trial(pod.uid, leg)
        try:
            with trial, state.ledger.start(leg, pod.uid, choice.tokens) as scope:
                attempt, answer = await posts.send(pod, write, companion)
                done = _read(attempt, answer)
                if done is not None:
                    scope.complete(None if done.usage is None else done.usage.count_computed())
        except asyncio.CancelledError:
            self.lessons.outcomes.note_silence(pod, leg, began)
            raise
        if done is None:
            state.prefixes.discard(expected, pod.uid)
        self.lessons.note_attempt(attempt, request, routed.pods.model, record)
        return attempt, answer, done

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


def _write_side_body(
    split: Split, leg: Leg, request: InferenceRequest, pods: Mapping[Leg, Pod], request_id: str
) -> Pieces:
    return split.side_body(leg, request, Placement(pods, request_id))


def _read(attempt: Attempt, answer: EngineAnswer | None) -> LegAnswer | None:
    """Return what the leg was for; None if the attempt has not carried it out."""
    if answer is None or attempt.speaks is not Speaks.DONE:
        return None
    return LegAnswer(
        attempt.leg,
        attempt.pod,
        attempt.request_id,
        answer.body,
        read_usage(answer.body),
        time.monotonic(),
        answer.headers.get("date", ""),
    )


def _choose_refusal(refusals: Sequence[EngineAnswer], *, failures: int) -> EngineAnswer | None:
    """Return which pod's refusal the client gets; None if it may not be the truth.

    If other pods have failed, they might have had what these lack: to be told that the model does
    not exist would send the client away for good.
    """
    told = [answer for answer in refusals if not failures or answer.status in BUSY]
    return max(told, key=lambda answer: rank(answer.status), default=None)
