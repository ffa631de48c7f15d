"""Runs side legs: attempts on one pod after another, within one deadline."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence, Sized
from dataclasses import dataclass

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import NOTHING, HandoffInvalid, Leg, Order, PeerFacts
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.request import InferenceRequest
from pdrouter.routing.decision import Choice
from pdrouter.routing.router import Router
from pdrouter.serving.call import Call
from pdrouter.serving.companion import Companion
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.introductions import Introductions
from pdrouter.serving.lease import Leases
from pdrouter.serving.leg_outcome import (
    Attempt,
    LegAnswer,
    LegFailed,
    LegRefused,
    choose_refusal,
    list_failed,
)
from pdrouter.serving.leg_posts import LegPosts, number_ids
from pdrouter.serving.leg_requests import LegRequests
from pdrouter.serving.leg_try import LegTry, TryResult
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.priorities import Priorities
from pdrouter.serving.record import RequestRecord, Retry
from pdrouter.serving.refusals import refuse_handle
from pdrouter.serving.statuses import DONE, Speaks
from pdrouter.serving.steps import Step

_TOGETHER = Order.TOGETHER
FREE_REFUSALS = 4
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
        total_s: seconds for all side legs of a request together.
        retries: how many further pods are tried after a failure.
        budget: how many of all requests may be tried again.
        introductions: knows engines, where wires need it.
        leases: know which handles are still good.
        priorities: tell engines when requests are due.
    """

    client: EngineClient
    cache: PodCache
    router: Router
    splits: Splits
    lessons: LegLessons
    total_s: float
    retries: int
    budget: RetryBudget
    introductions: Introductions
    leases: Leases
    priorities: Priorities

    async def run(
        self,
        leg: Leg,
        requests: LegRequests,
        chosen: OpenDecision,
        headers: Mapping[str, str],
        call: Call,
    ) -> LegAnswer | Companion:
        """Carry out a leg, or begin it where it runs beside the last one.

        Cancelling closes the connection: the engine stops its work. A leg that has only begun is
        written to an engine: one that cannot be connected has cost another try, and no error. The
        rest of it is a task of the call, which fails with the same exceptions if the leg does.

        Args:
            leg: the leg.
            requests: the request, as the legs get it.
            chosen: its pods; after a failure, there may be others for all legs.
            headers: headers for the engine.
            call: gets what happens, and owns the task.

        Raises:
            LegRefused: the engine refused the request.
            LegFailed: all attempts failed.
        """
        routed, record, request = chosen.routed, call.record, requests.client
        ids, until = number_ids(record.request_id), requests.deadline
        posts = LegPosts(
            self.client, leg, request, headers, record, ids, until, total_s=self.total_s
        )
        attempts: list[Attempt] = []
        refusals: list[EngineAnswer] = []
        choice = chosen.decision.find(leg)
        while choice is not None:
            prompt = requests.prompt
            ended = await self._carry_out(choice, posts, prompt, chosen, call, before=attempts)
            if isinstance(ended, Companion):
                return ended
            done = ended.done
            attempts.append(ended.attempt)
            if done is not None:
                if not (done.late and self._may_repeat(attempts, posts)):
                    self.lessons.note_answer(done, attempts, prompt, routed.pods.model, record)
                    return done
                # The router stood still, not the pod: that has the prompt cached by now.
                self.lessons.note_retry(Retry.SAME_ROLESET, record)
                await requests.renew(ended.attempt, choice.pod)
                continue
            speaks = ended.attempt.speaks
            if ended.answer is not None and speaks is not Speaks.FAILURE:
                refusals.append(ended.answer)
            if speaks is Speaks.REQUEST or time.monotonic() >= posts.deadline:
                break
            choice = self._choose_other(attempts, refusals, request, chosen, record)
            if choice is not None:
                await requests.renew(ended.attempt, choice.pod)
        raise self._give_up(attempts, refusals, request, chosen.routed.pods, record)

    def note_last_failed(self, companion: Companion) -> None:
        """Note that the engine of a last leg has failed: it may have been told of a wrong peer."""
        self.introductions.doubt(companion.pod)

    def _carry_out(
        self,
        choice: Choice,
        posts: LegPosts,
        request: InferenceRequest,
        chosen: OpenDecision,
        call: Call,
        *,
        before: Sequence[Attempt],
    ) -> Awaitable[TryResult | Companion]:
        """Try a leg on one pod, to its end or until it runs beside the last leg."""
        pod = choice.pod
        split = self.splits.find(pod.engine, pod.kv_connector)
        source = self._find_source(pod, chosen, before) if split.takes_source else None
        call.record.kv_source = source
        tried = LegTry(choice, split, request, chosen.pods, source)
        if split.needs_peer:
            return self._introduce(tried, posts, chosen, call)
        if split.order is _TOGETHER:
            return self._begin(tried, NOTHING, posts, chosen, call)
        if posts.record.priority is not None:
            self._rank(tried, posts, once=False)
        return self._try(tried, posts, chosen)

    async def _introduce(
        self, tried: LegTry, posts: LegPosts, chosen: OpenDecision, call: Call
    ) -> TryResult | Companion:
        """Try a leg whose wire must know the engine."""
        choice, began = tried.choice, time.monotonic()
        try:
            with (
                # Or an engine that says nothing would look idle to all who come meanwhile.
                self.router.state.hold(choice.leg, choice.pod.uid, choice.tokens),
                Step(call.record.steps, "introduction", waits=True),
            ):
                peer = await self.introductions.meet(choice.pod, tried.split, posts.deadline)
        except PostFailed as error:
            attempt = posts.describe_failure(choice.pod, error, began)
            model = chosen.routed.pods.model
            self.lessons.note_attempt(attempt, tried.request, model, call.record)
            return TryResult(attempt)
        tried.peer = peer
        if peer is not None and tried.split.order is Order.TOGETHER:
            return await self._begin(tried, peer, posts, chosen, call)
        self._rank(tried, posts, once=False)
        return await self._try(tried, posts, chosen)

    async def _begin(
        self, tried: LegTry, peer: PeerFacts, posts: LegPosts, chosen: OpenDecision, call: Call
    ) -> TryResult | Companion:
        """Try a leg until it runs beside the last one."""
        self._rank(tried, posts, once=True)
        pod, leg = tried.choice.pod, tried.choice.leg
        companion = call.companion = Companion(pod, peer, trusts_head=tried.split.trusts_head)
        call.start(self._accompany(companion, tried, posts, chosen))
        with Step(call.record.steps, leg, waits=True):
            await companion.progress.sent.wait()
        ended = companion.tried
        if ended is None or ended.done is not None:
            companion.committed = True
            call.record.prefill_pod = pod
            return companion
        call.companion = None
        return ended

    def _rank(self, tried: LegTry, posts: LegPosts, *, once: bool) -> None:
        """Have the engine told when the request is due, if it takes that."""
        if posts.record.priority is not None:
            leg, pods = tried.choice.leg, (tried.choice.pod,)
            tried.request = self.priorities.rank(
                tried.request, leg, pods, posts.record, posts.headers, once=once
            )

    def _find_source(self, pod: Pod, chosen: OpenDecision, before: Sequence[Attempt]) -> Pod | None:
        """Return from which pod another one is to have the beginning of the prompt."""
        facts, pods = chosen.routed.facts, chosen.routed.pods
        # The view of now: while media were encoded, or another pod tried, a source may have gone.
        pods = self.cache.view.models.get(pods.model, pods)
        return self.router.find_kv_source(pod, facts, pods, list_failed(before))

    async def _accompany(
        self, companion: Companion, tried: LegTry, posts: LegPosts, chosen: OpenDecision
    ) -> None:
        """Carry out a try of a leg beside the last one; fail if that is on its way in vain."""
        pods, record, request = chosen.routed.pods, posts.record, tried.request
        try:
            ended = companion.tried = await self._try(tried, posts, chosen, companion=companion)
            attempt, answer, done = ended.attempt, ended.answer, ended.done
            if companion.committed:
                # The step was over when the request was written; the leg has taken until now.
                record.steps.add(attempt.leg, attempt.seconds)
            if done is not None:
                self._check_companion(done, tried, pods.model, record)
                self.lessons.note_answer(done, (attempt,), request, pods.model, record)
            elif companion.committed:
                refusals = () if attempt.speaks is Speaks.FAILURE or answer is None else (answer,)
                error = self._give_up((attempt,), refusals, request, pods, record)
                if isinstance(error, LegFailed):
                    error.committed = True
                try:
                    raise error
                finally:
                    del error  # It knows this frame, and would know itself by it.
        finally:
            companion.end()

    def _check_companion(
        self, done: LegAnswer, tried: LegTry, model: str, record: RequestRecord
    ) -> None:
        """Check that the engine of the last leg does not wait for another than has answered.

        Raises:
            RequestRejected: it does.
        """
        try:
            tried.split.check_companion(done, tried.place(done.request_id))
        except HandoffInvalid as invalid:
            record.handoff = invalid.reason
            self.lessons.outcomes.note_unusable(done, model, invalid.reason)
            raise refuse_handle(invalid) from invalid

    async def _try(
        self,
        tried: LegTry,
        posts: LegPosts,
        chosen: OpenDecision,
        *,
        companion: Companion | None = None,
    ) -> TryResult:
        """Try a leg on one pod, count it there meanwhile, and learn from it."""
        state, routed, record, choice = self.router.state, chosen.routed, posts.record, tried.choice
        pod, leg, facts, caches = choice.pod, choice.leg, routed.facts, self.lessons.caches
        began, asked = state.failures.clock(), self.introductions.knowledge.clock()
        record.predicted_prefill_s = choice.seconds
        # Engines compute in turn, so that a request behind its twin finds what that has computed:
        # the prompt counts as cached as soon as it is sent.
        guess = caches.guess(facts.prefix, pod.uid, choice.tokens)
        cached = max(0, facts.prompt_tokens - choice.tokens)
        done = None
        try:
            with state.hold(leg, pod.uid, choice.tokens, facts.due, cached) as scope:
                if tried.request.priority is None:
                    sent = posts.send(pod, tried.write, companion)
                else:
                    sent = self._send_ranked(tried, posts, companion)
                attempt, answer = await sent
                if answer is not None and answer.status in DONE:
                    done = tried.read(attempt, answer, self.leases)
                    scope.complete(None if done.usage is None else done.usage.count_computed())
        except asyncio.CancelledError:
            if companion is None or not (companion.excused or companion.good):
                self.lessons.outcomes.note_silence(pod, leg, began)
            raise
        except RequestRejected:
            state.prefixes.discard(guess.new, pod.uid)
            raise
        request = tried.request
        if done is None:
            state.prefixes.discard(guess.new, pod.uid)
            if attempt.speaks is Speaks.FAILURE:
                self.introductions.doubt(pod)
        else:
            if tried.peer is not NOTHING:
                self.introductions.take(done, tried.split, asked)
            if not request.edits:  # The bytes of encoded media are not in the prompt.
                caches.take(guess, done, request.endpoint.path, record)
        self.lessons.note_attempt(attempt, request, routed.pods.model, record)
        return TryResult(attempt, answer, done)

    async def _send_ranked(
        self, tried: LegTry, posts: LegPosts, companion: Companion | None
    ) -> tuple[Attempt, EngineAnswer | None]:
        """Send a leg to a pod; once more without its priority, if that is what it refuses."""
        pod, request, priorities = tried.choice.pod, tried.request, self.priorities
        attempt, answer = await posts.send(pod, tried.write, companion)
        if not priorities.is_refused(request, answer):
            if attempt.speaks is Speaks.DONE:
                priorities.note_taken(pod)
            return attempt, answer
        if companion is not None:
            # The last leg is on its way, for this very one: none of its kind will be.
            priorities.note_refused(pod, request.model)
            return structs.replace(attempt, failure=FailureKind.STATUS), answer
        tried.request = request.rank(None)
        again, told = await posts.send(pod, tried.write)
        if again.status != attempt.status:
            priorities.note_refused(pod, request.model)
            posts.record.ranked_legs = posts.record.ranked_legs[:-1]
        return again, told

    def _may_repeat(self, attempts: Sequence[Attempt], posts: LegPosts) -> bool:
        """Return whether a leg that a pod has carried out may be carried out once more."""
        return (
            len(attempts) <= self.retries
            and time.monotonic() < posts.deadline
            and self.budget.take_retry(posts.record.model)
        )

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
        free = min(len(refusals), FREE_REFUSALS) if self.retries else 0
        if len(attempts) - free > self.retries:
            return None
        self.router.state.catch_up()
        # The view of now: the pod that failed may be gone from it, and others have come.
        pods = self.cache.view.models.get(request.model)
        if pods is None:
            return None
        routed, last = chosen.routed, chosen.decision.last.pod
        tried, failed = [attempt.pod for attempt in attempts], list_failed(attempts)
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
        told = choose_refusal(refusals, failures=len(attempts) - len(refusals))
        if told is not None:
            return LegRefused(attempts[-1].leg, told)
        return LegFailed(
            tuple(attempts),
            unsplittable=self.lessons.note_failure(attempts, request, pods, record),
            over_budget=Retry.OVER_BUDGET in record.retries,
        )
