"""Which pods a request gets: by its model's configuration, its headers and the operator's rules."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engines.registry import Splits
from pdrouter.load.output_length import OutputLengths
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.header_values import read_one, read_strategy
from pdrouter.openai.headers import (
    CLIENT_STRATEGY,
    CONFIG_PROFILE,
    EXTERNAL_FILTER,
    ROUTING_STRATEGY,
)
from pdrouter.openai.kind import describe_kind
from pdrouter.openai.media_items import MediaItem
from pdrouter.openai.models import unsupported_model
from pdrouter.openai.prompt_prefix import NO_PREFIX, hash_prompt
from pdrouter.openai.request import InferenceRequest
from pdrouter.routing.admission import DeadlineMissed, QueueTooLong
from pdrouter.routing.deadlines import Deadline, assume_deadline, number_deadline
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.label_selector import LabelSelector
from pdrouter.routing.profiles import (
    UNCONFIGURED,
    ResolvedProfile,
    resolve_profile,
    resolve_strategy_name,
)
from pdrouter.routing.router import Router
from pdrouter.routing.scoring import PROMPT_READERS
from pdrouter.serving.charges import Charges
from pdrouter.serving.fair_queue import FairQueues
from pdrouter.serving.fit import find_misfit
from pdrouter.serving.model_queue import Applicant
from pdrouter.serving.models import Models
from pdrouter.serving.policy import DispatchPolicy
from pdrouter.serving.record import Observer, RequestRecord
from pdrouter.serving.refusals import refuse_late, refuse_missing, refuse_queue
from pdrouter.serving.reservations import limit_output, reserve_tokens
from pdrouter.serving.response_holders import ResponseHolders
from pdrouter.serving.selectors import read_selector
from pdrouter.serving.session_facts import add_session
from pdrouter.serving.targets import read_class, read_target
from pdrouter.serving.turns import Turn
from pdrouter.serving.unsplittable import REASON as NOT_PREFILLABLE
from pdrouter.serving.unsplittable import UnsplittableKinds
from pdrouter.settings.combination import CombinationInvalid


class Routed(msgspec.Struct, frozen=True):
    """The pods for a request, and what they were chosen by.

    Attributes:
        pods: the model's pods, among which they were chosen.
        strategy: the strategy.
        facts: what it was told of the request.
        decision: the pods.
        at: when they were chosen, on the clock of the memory of failures.
        turn: the request's turn; None where users do not take turns.
        charges: charge its user for it; None for nobody.
    """

    pods: ModelPods
    strategy: Strategy
    facts: RoutingFacts
    decision: Decision
    at: float
    turn: Turn | None = None
    charges: Charges | None = None

    def end(self, record: RequestRecord) -> None:
        """Note that the request has ended. Further calls change nothing."""
        if self.turn is not None:
            self.turn.begin()
        if self.charges is not None:
            self.charges.end(record)


@dataclass(frozen=True, slots=True)
class PodChooser:
    """Chooses pods. One for the whole process.

    Attributes:
        models: finds models.
        cache: the pods.
        router: decides.
        ratios: knows the length of prompts.
        lengths: knows the length of answers.
        policy: what the operator decided.
        observer: is told of decisions.
        kinds: knows which kinds of requests prefill engines cannot serve.
        splits: how engines split requests.
        holders: know which pods keep answers.
        charges: charges users for what they are served.
        turns: lets users take turns; None where they do not.
    """

    models: Models
    cache: PodCache
    router: Router
    ratios: TokenRatios
    lengths: OutputLengths
    policy: DispatchPolicy
    observer: Observer
    kinds: UnsplittableKinds
    splits: Splits
    holders: ResponseHolders
    charges: Charges
    turns: FairQueues | None = None

    async def choose(
        self,
        request: InferenceRequest,
        pods: ModelPods,
        headers: Mapping[str, str],
        record: RequestRecord,
        tokens: int,
        *,
        media: Sequence[MediaItem] = (),
    ) -> Routed | None:
        """Choose the pods for a request, when it is its turn.

        Args:
            request: the request.
            pods: the pods of its model.
            headers: the client's headers.
            record: gets the decision.
            tokens: length of the prompt.
            media: its media, if others may encode them for the pods.

        Returns:
            None if neither the client nor the model nor the operator names a strategy.

        Raises:
            RequestRejected: the request asks for what is not there, or must wait.
        """
        self.router.state.catch_up()
        selector = read_selector(headers) if EXTERNAL_FILTER in headers else None
        resolved = UNCONFIGURED
        if pods.config is not None:
            resolved = self._resolve(request, pods, headers, tokens)
        if resolved.automatic:
            record.profile = resolved.name
        strategy = self._find_strategy(resolved, _read_strategy(headers), record)
        if strategy is None:
            return None
        if pods.unsupported:
            raise unsupported_model(pods.model, pods.unsupported)
        items = tuple(dict.fromkeys(item.digest for item in media)) if media else ()
        began = time.perf_counter()
        try:
            facts = self._describe(
                request,
                pods,
                tokens,
                selector,
                resolved,
                strategy=strategy,
                items=items,
                user=record.user,
            )
            keys, holders = self.policy.session_keys, self.holders
            facts = add_session(facts, request, pods, headers, record, keys=keys, holders=holders)
            deadline = self._find_deadline(request, tokens, headers, resolved, record)
            if deadline is not None:
                facts = structs.replace(facts, deadline=deadline)
        finally:
            record.steps.end("describe", began)
        if self.turns is None:
            return self._route(strategy, facts, pods, record)
        line = read_class(headers, self.policy.deadlines.classes)
        applicant = Applicant(request.model, pods, strategy, facts, line, record)
        return await self._route_in_turn(applicant, self.turns)

    async def _route_in_turn(self, asks: Applicant, turns: FairQueues) -> Routed:
        """Choose the pods for a request, once its turn has come."""
        turn = None
        try:
            turn = await turns.wait(asks)
            # Meanwhile, pods may have come and gone, and others have chosen.
            pods = self.models.find(asks.name)
            self.router.state.catch_up()
            routed = self._route(asks.strategy, asks.facts, pods, asks.record, turn)
        except BaseException:
            if turn is not None:
                turn.begin()
            self.charges.end(asks.record)
            raise
        if not routed.decision.encode:
            turn.begin()
        return routed

    def _route(
        self,
        strategy: Strategy,
        facts: RoutingFacts,
        pods: ModelPods,
        record: RequestRecord,
        turn: Turn | None = None,
    ) -> Routed:
        """Choose the pods for a request now."""
        began = time.perf_counter()
        try:
            decision = self.router.decide(strategy, facts, pods)
        except NoReadyPod as missing:
            raise refuse_missing(missing, pods, facts.whole) from missing
        except QueueTooLong as queue:
            raise refuse_queue(queue) from queue
        except DeadlineMissed as missed:
            raise refuse_late(missed) from missed
        finally:
            record.steps.end("route", began)
        if record.queued_s:
            note = f"it has waited {record.queued_s:.2f} s for its turn"
            decision = structs.replace(decision, notes=(*decision.notes, note))
        record.decision = decision
        record.aggregated = decision.reason
        self.observer.request_routed(record)
        charges = self.charges if facts.user else None
        if charges is not None:
            charges.charge(record.request_id, facts)
        at = self.router.state.failures.clock()
        return Routed(pods, strategy, facts, decision, at, turn, charges)

    def replace_last(
        self, model: str, routed: Routed, holder: Pod | None, record: RequestRecord
    ) -> Routed | None:
        """Choose another last pod if the chosen one is not ready any more, or has failed others.

        Args:
            model: name by which the view has the model.
            routed: what was chosen, as it stands after the side legs.
            holder: the pod that holds the prompt's KV; None if a leg failed.
            record: learns why the request is served whole, if it is now.

        Returns:
            What is chosen now; None if the pod is still there, as it was, or none is better.

        Raises:
            RequestRejected: there is no ready pod for it.
        """
        self.router.state.catch_up()
        pods = self.cache.view.models.get(model) or ModelPods.group(model, ())
        last = routed.decision.last
        if pods is routed.pods and not self.router.state.failures.was_ejected_since(
            last.pod.uid, last.leg, routed.at
        ):
            return None
        facts = routed.facts
        if holder is None:
            facts = structs.replace(facts, whole=record.aggregated)
        try:
            decision = self.router.replace_last(
                routed.strategy, last, facts, pods, holder, chosen_at=routed.at
            )
        except NoReadyPod as missing:
            raise refuse_missing(missing, pods) from missing
        if decision is None:
            return None
        record.aggregated = decision.reason
        decision = structs.replace(decision, encode=routed.decision.encode)
        return structs.replace(routed, decision=decision)

    def _find_strategy(
        self, resolved: ResolvedProfile, requested: str, record: RequestRecord
    ) -> Strategy | None:
        name = resolve_strategy_name(resolved, requested, self.policy.default_strategy)
        if name is None:
            return None
        try:
            strategy = self.router.strategies.find(name)
        except CombinationInvalid as invalid:
            if name == requested and not resolved.locked_strategy:
                message = str(invalid)
                raise RequestRejected(
                    400, "invalid_routing_strategy", message, ROUTING_STRATEGY
                ) from invalid
            message = f"in the model's annotation model.aibrix.ai/config, {invalid}"
            raise RequestRejected(503, "invalid_routing_strategy", message) from invalid
        record.strategy, record.asked_strategy = strategy.name, name
        return strategy

    def find_rate(
        self, request: InferenceRequest, pods: ModelPods, headers: Mapping[str, str], tokens: int
    ) -> int | None:
        """Return how many requests may pass in a second, as the profile of one says."""
        return self._resolve(request, pods, headers, tokens).profile.requests_per_second

    def _resolve(
        self, request: InferenceRequest, pods: ModelPods, headers: Mapping[str, str], tokens: int
    ) -> ResolvedProfile:
        """Return what the model's configuration says of a request, whose prompt is this long."""
        requested = read_one(headers[CONFIG_PROFILE]) if CONFIG_PROFILE in headers else ""
        return resolve_profile(pods.config, requested, tokens, request.max_output_tokens)

    def reserve_tokens(self, request: InferenceRequest, model: str, tokens: int) -> tuple[int, int]:
        """Return the tokens that a prompt, and the answer to it, take of limits at first."""
        estimate = partial(self.ratios.estimate, request.model)
        expected = limit_output(request, self.lengths.expect(model))
        return reserve_tokens(request, tokens, expected, estimate)

    def count_prompt_tokens(self, request: InferenceRequest, media: Sequence[MediaItem]) -> int:
        """Return the length of a prompt in tokens, as estimated."""
        if request.listed_tokens is not None:
            return request.listed_tokens
        self.router.state.catch_up()
        size = len(request.prompt or request.body.data)
        if media:
            size -= sum(item.end - item.start for item in media)
        return self.ratios.estimate(request.model, size, len(media))

    def _describe(
        self,
        request: InferenceRequest,
        pods: ModelPods,
        tokens: int,
        selector: LabelSelector | None,
        resolved: ResolvedProfile,
        *,
        strategy: Strategy,
        items: tuple[str, ...],
        user: str,
    ) -> RoutingFacts:
        """Return what strategies need to know of a request."""
        expected = self.lengths.expect(pods.model)
        if items and not any(map(pods.find_encoders, pods.prefill or pods.whole)):
            items = ()
        whole = find_misfit(request, pods, self.splits, encoded=bool(items))
        if whole is None and self.kinds.evidence:
            whole = self._find_unsplittable(request, pods)
        split = whole is None and pods.disaggregated
        profile = resolved.profile
        algorithms = strategy.list_algorithms(profile.prefill_policy, profile.decode_policy)
        recalled = not PROMPT_READERS.isdisjoint(algorithms)
        return RoutingFacts(
            tokens,
            whole,
            hash_prompt(request) if split or recalled else NO_PREFIX,
            limit_output(request, expected),
            selector,
            resolved.name,
            profile.prefill_policy,
            profile.decode_policy,
            items=items,
            usual_output_tokens=expected,
            user=user,
            algorithms=algorithms,
        )

    def _find_deadline(
        self,
        request: InferenceRequest,
        tokens: int,
        headers: Mapping[str, str],
        resolved: ResolvedProfile,
        record: RequestRecord,
    ) -> Deadline | None:
        """Return when a request is due; None for no such time. The record learns it."""
        policy, state = self.policy, self.router.state
        target = read_target(headers, policy.deadlines.classes, resolved.profile)
        if request.endpoint.legs == 1 or (target is None and not policy.assumes_deadlines):
            return None
        now = state.clock()
        came = now - record.elapsed_s
        if target is None:
            found = assume_deadline(policy.deadlines, tokens, state.ledger.rates, came)
        else:
            found = Deadline(came + target.seconds, target.seconds, target.source)
        record.deadline = found
        if policy.assumes_deadlines:
            record.priority = number_deadline(found, now, time.time())
        return found

    def _find_unsplittable(self, request: InferenceRequest, pods: ModelPods) -> str | None:
        if not pods.whole:
            return None
        kind = describe_kind(request)
        if kind is None or not self.kinds.is_whole(pods.model, kind):
            return None
        return NOT_PREFILLABLE


def _read_strategy(headers: Mapping[str, str]) -> str:
    """Return the strategy that a client asks for; nothing if it asks for none."""
    for name in (CLIENT_STRATEGY, ROUTING_STRATEGY):
        if name in headers and (strategy := read_strategy(headers[name])):
            return strategy
    return ""
