"""The prefill leg of one request: which pods it is tried on, and what is learnt from it."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import Connectors
from pdrouter.load.failures import Leg
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.openai.kind import describe_kind
from pdrouter.openai.request import InferenceRequest, count_token_ids
from pdrouter.routing.decision import Choice
from pdrouter.routing.state import RoutingState
from pdrouter.serving.choosing import Routed
from pdrouter.serving.engine_client import FailureKind
from pdrouter.serving.legs import (
    PrefillAttempt,
    Prefilled,
    PrefillFailed,
    PrefillLeg,
    PrefillPlan,
    PrefillTarget,
)
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.record import Observer, RequestRecord
from pdrouter.serving.unsplittable import UnsplittableKinds

log = logging.getLogger(__name__)

_OF_THE_POD = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Prefilling:
    """What the prefill leg of any request needs.

    Attributes:
        cache: the pods.
        state: the pods' condition.
        connectors: how engines split requests.
        leg: runs prefill legs.
        ratios: learns the length of prompts.
        observer: is told of attempts.
        outcomes: are told of attempts, so that pods that fail are avoided.
        kinds: knows which kinds of requests prefill engines cannot serve.
    """

    cache: PodCache
    state: RoutingState
    connectors: Connectors
    leg: PrefillLeg
    ratios: TokenRatios
    observer: Observer
    outcomes: PodOutcomes
    kinds: UnsplittableKinds


class NotPrefillable(Exception):
    """All prefill pods that were tried fail this request and no other: one pod is to serve it."""


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """The prefill leg of one request.

    A pod is taken to have the prompt cached as soon as the prompt is sent there: engines compute in
    turn, so that a request behind its twin finds what that has computed. What an attempt that fails
    would have computed is taken back.
    """

    prefilling: Prefilling
    routed: Routed
    request: InferenceRequest
    record: RequestRecord
    _expected: dict[str, list[int]] = field(default_factory=dict, init=False)
    _aimed: list[tuple[Pod, float]] = field(default_factory=list, init=False)

    async def run(self, first: Choice, headers: Mapping[str, str]) -> Prefilled:
        """Carry out the leg.

        Args:
            first: the pod to try first.
            headers: headers for the engine.

        Raises:
            PrefillRefused: the engine refused the request.
            NotPrefillable: engines cannot serve requests of this kind in two legs.
            PrefillFailed: all attempts failed.
        """
        request, record = self.request, self.record
        path = request.endpoint.path + request.query
        plan = PrefillPlan(path, headers, self._aim(first), self._choose_other)
        try:
            with record.steps.time("prefill", waits=True):
                prefilled = await self.prefilling.leg.run(plan, record.request_id, self._note)
        except PrefillFailed as failed:
            if self._is_not_prefillable():
                raise NotPrefillable(failed.last.message) from failed
            raise
        except asyncio.CancelledError:
            pod, began = self._aimed[-1]
            self.prefilling.outcomes.note_silence(pod, Leg.PREFILL, began)
            raise
        self._learn(prefilled)
        return prefilled

    def _learn(self, prefilled: Prefilled) -> None:
        request, model = self.request, self.routed.pods.model
        for attempt in self.record.attempts:
            self.prefilling.outcomes.note_refuted(attempt, model)
        if not self.prefilling.kinds.empty:
            kind = describe_kind(request)
            if kind is not None:
                self.prefilling.kinds.note_served(model, kind)
        if prefilled.usage is not None:
            self.record.prompt_tokens = prefilled.usage.prompt_tokens
            self.record.cached_tokens = prefilled.usage.cached_tokens
            if count_token_ids(request.prompt) is None:
                self.prefilling.ratios.observe(
                    request.model, len(request.prompt), prefilled.usage.prompt_tokens
                )

    def _is_not_prefillable(self) -> bool:
        """Return whether the request is why the leg has failed, and remember its kind if so."""
        attempts, pods = self.record.attempts, self.routed.pods
        kind = describe_kind(self.request)
        if kind is None or not all_say_the_same(attempts):
            return False
        failures, kinds = self.prefilling.state.failures, self.prefilling.kinds
        tried = {attempt.pod.uid for attempt in attempts}
        if not all(failures.is_well_but_for(uid, Leg.PREFILL, kind) for uid in tried):
            return False
        known = {pod.uid for pod in pods.prefill}
        if not kinds.note_failed(pods.model, kind, tried, known):
            return False
        for uid in kinds.list_failed(pods.model, kind):
            failures.forgive(uid, Leg.PREFILL, kind)
        log.warning(
            "served whole, since prefill engines fail it",
            extra={
                "fields": {
                    "request_id": self.record.request_id,
                    "model": pods.model,
                    "path": kind.path,
                    "members": kind.members,
                    "message": attempts[-1].message,
                }
            },
        )
        return True

    def _choose_other(self, tried: Collection[str]) -> PrefillTarget | None:
        # The view of now: the pod that failed may be gone from it, and others have come.
        pods = self.prefilling.cache.view.models.get(self.request.model)
        if pods is None:
            return None
        routed = self.routed
        choice = routed.strategy.choose_other_prefill(
            routed.facts, routed.decision.decode.pod, tried, pods, self.prefilling.state
        )
        return self._aim(choice) if choice else None

    def _aim(self, choice: Choice) -> PrefillTarget:
        pod = choice.pod
        self._aimed.append((pod, self.prefilling.state.failures.clock()))
        self.record.predicted_prefill_s = choice.seconds
        self._expected[pod.uid] = self.prefilling.state.prefixes.add(
            self.routed.facts.prefix.hashes, pod.uid, choice.tokens
        )
        connector = self.prefilling.connectors.get(pod.kv_connector)
        return PrefillTarget(pod, choice.tokens, connector.prefill_body(self.request))

    def _note(self, attempt: PrefillAttempt) -> None:
        self.record.attempts.append(attempt)
        if attempt.failure is None:
            self.record.prefill_pod = attempt.pod
        if attempt.failure is not None or attempt.status is None or attempt.status >= 400:
            uid = attempt.pod.uid
            self.prefilling.state.prefixes.discard(self._expected[uid], uid)
        failed = attempt.failure is FailureKind.STATUS
        self.prefilling.outcomes.note_attempt(
            attempt,
            self.routed.pods.model,
            self.request.endpoint.path,
            describe_kind(self.request) if failed else None,
        )
        self.prefilling.observer.prefill_attempted(self.record, attempt)


def all_say_the_same(attempts: Sequence[PrefillAttempt]) -> bool:
    """Return whether all engines have answered with one status that speaks of an error of theirs.

    502, 503 and 504 speak of a pod that is away, asleep or busy.
    """
    statuses = {
        attempt.status if attempt.failure is FailureKind.STATUS else None for attempt in attempts
    }
    status = statuses.pop()
    return not statuses and status is not None and status >= 500 and status not in _OF_THE_POD
