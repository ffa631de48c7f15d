"""The prefill leg of one request: which pods it is tried on, and what is learnt from it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import Connectors
from pdrouter.extproc.record import Observer, RequestRecord
from pdrouter.openai.request import InferenceRequest, count_token_ids
from pdrouter.prefill.leg import (
    PrefillAttempt,
    Prefilled,
    PrefillLeg,
    PrefillPlan,
    PrefillTarget,
)
from pdrouter.routing.decision import Choice, RoutingFacts, Strategy
from pdrouter.routing.prompt_length import TokenRatios
from pdrouter.routing.state import RoutingState


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
    """

    cache: PodCache
    state: RoutingState
    connectors: Connectors
    leg: PrefillLeg
    ratios: TokenRatios
    observer: Observer


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """The prefill leg of one request.

    A pod is taken to have the prompt cached as soon as the prompt is sent there: engines compute in
    turn, so that a request behind its twin finds what that has computed. What an attempt that fails
    would have computed is taken back.
    """

    prefilling: Prefilling
    strategy: Strategy
    request: InferenceRequest
    facts: RoutingFacts
    decode: Pod
    record: RequestRecord
    _expected: dict[str, list[int]] = field(default_factory=dict, init=False)

    async def run(self, first: Choice, headers: Mapping[str, str]) -> Prefilled:
        """Carry out the leg.

        Args:
            first: the pod to try first.
            headers: headers for the engine.

        Raises:
            PrefillRefused: the engine refused the request.
            PrefillFailed: all attempts failed.
        """
        request, record = self.request, self.record
        path = request.endpoint.path + request.query
        plan = PrefillPlan(path, headers, self._aim(first), self._choose_other)
        with record.steps.time("prefill", waits=True):
            prefilled = await self.prefilling.leg.run(plan, record.request_id, self._note)
        if prefilled.usage is not None:
            record.cached_tokens = prefilled.usage.cached_tokens
            if count_token_ids(request.prompt) is None:
                self.prefilling.ratios.observe(
                    request.model, len(request.prompt), prefilled.usage.prompt_tokens
                )
        return prefilled

    def _choose_other(self, tried: Collection[str]) -> PrefillTarget | None:
        # The view of now: the pod that failed may be gone from it, and others have come.
        pods = self.prefilling.cache.view.models.get(self.request.model)
        if pods is None:
            return None
        choice = self.strategy.choose_other_prefill(
            self.facts, self.decode, tried, pods, self.prefilling.state
        )
        return self._aim(choice) if choice else None

    def _aim(self, choice: Choice) -> PrefillTarget:
        pod = choice.pod
        self._expected[pod.uid] = self.prefilling.state.prefixes.add(
            self.facts.prefix.hashes, pod.uid, choice.tokens
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
        self.prefilling.observer.prefill_attempted(self.record, attempt)
