"""From a request's body to the pod that it goes to: validate, route, prefill, hand over."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.source import RouteCheck, RouteUnavailable
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engines.connector import TRANSFER_MEMBERS, HandoffInvalid, whole_body
from pdrouter.engines.registry import Connectors
from pdrouter.extproc.headers import FORWARDED_TO_PREFILL, ROUTING_STRATEGY
from pdrouter.extproc.prefilling import Prefilling, PrefillStep
from pdrouter.extproc.record import Observer, RequestRecord
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.paths import Endpoint
from pdrouter.openai.prompt_prefix import NO_PREFIX, hash_prompt
from pdrouter.openai.request import (
    InferenceRequest,
    count_token_ids,
    parse_request,
    rename_model,
)
from pdrouter.prefill.client import FailureKind
from pdrouter.prefill.leg import Prefilled, PrefillFailed
from pdrouter.routing.aggregation import Aggregation, is_faster_whole
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.state import RoutingState

RETRY_AFTER_S = 5
"""Seconds after which a client may find a ready pod, or one that is less busy."""


class FailurePolicy(StrEnum):
    """What becomes of a request whose prefill leg gives nothing to hand over."""

    FAIL = "fail"
    """The client gets an error."""
    AGGREGATE = "aggregate"
    """The decode pod serves the request whole."""


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """What an operator may decide about the way of a request.

    Attributes:
        default_strategy: name of the strategy without a `routing-strategy` header; None to let such
            requests pass by their model's own route.
        split_multimodal: whether prompts with images, sound or files get two legs.
        on_prefill_failure: what to do if no pod carries out the prefill leg.
        on_handoff_failure: what to do if a pod has, but its answer is of no use to a decode engine.
        forward_headers: client headers for the prefill leg beside the usual ones.
        max_forwarded_bytes: size of the largest body that Envoy takes back.
        expected_output_tokens: length of an answer, if the client sets no lower limit.
        max_wait_s: predicted seconds in a prefill pod's queue above which requests are refused;
            None for no limit.
        aggregation: when a decode pod serves a request whole that could be split.
        handover_s: seconds that the way over two pods costs beside computing.
    """

    default_strategy: str | None
    split_multimodal: bool
    on_prefill_failure: FailurePolicy
    on_handoff_failure: FailurePolicy
    forward_headers: tuple[str, ...]
    max_forwarded_bytes: int
    expected_output_tokens: int
    max_wait_s: float | None
    aggregation: Aggregation
    handover_s: float


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's headers say.

    Attributes:
        endpoint: what the path asks for.
        query: query string of the path, with its question mark.
        headers: the client's headers, names in lower case.
    """

    endpoint: Endpoint
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Where a request goes, and with which body.

    Attributes:
        body: body of the request that Envoy sends on.
        request_id: `x-request-id` of that request.
        decode: the pod; None where the request passes without an endpoint.
        model: name of the model, for a request that passes.
    """

    body: bytes
    request_id: str
    decode: Pod | None
    model: str = ""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Finds the way of requests. One for the whole process.

    Attributes:
        cache: the pods.
        strategies: the strategies by name.
        state: the pods' condition.
        connectors: how engines split requests.
        prefilling: what the prefill leg needs.
        policy: what the operator decided.
        observer: is told of decisions.
        routes: checks the models' own routes, for requests without a strategy; None to pass them
            unchecked.
    """

    cache: PodCache
    strategies: Mapping[str, Strategy]
    state: RoutingState
    connectors: Connectors
    prefilling: Prefilling
    policy: DispatchPolicy
    observer: Observer
    routes: RouteCheck | None = None

    async def dispatch(
        self, head: RequestHead, data: bytes, record: RequestRecord, scopes: ExitStack
    ) -> Dispatched:
        """Find the way of one request, and run its prefill leg.

        Args:
            head: the client's headers.
            data: the client's body.
            record: filled in on the way.
            scopes: gets what must be released when the request has ended.

        Raises:
            RequestRejected: the router answers with an error of its own.
            PrefillRefused: the client gets the prefill engine's error.
        """
        record.body_bytes = len(data)
        request = parse_request(
            head.endpoint,
            head.query,
            data,
            transfer_members=TRANSFER_MEMBERS,
            split_multimodal=self.policy.split_multimodal,
        )
        record.stream = request.stream
        pods = self._find_model(request)
        record.model = request.model
        if pods.model != request.model:
            request = rename_model(request, pods.model)
        strategy = self._find_strategy(head.headers)
        if strategy is None:
            await self._check_route(pods.model)
            return Dispatched(whole_body(request), record.request_id, None, pods.model)
        record.strategy = strategy.name
        facts = self._describe(request, pods)
        decision = self._decide(strategy, facts, pods, record)
        decode = decision.decode.pod
        scopes.enter_context(self.state.ledger.start_decode(decode.uid, decision.decode.tokens))
        if decision.prefill is None:
            return Dispatched(whole_body(request), record.request_id, decode)
        try:
            step = PrefillStep(self.prefilling, strategy, request, facts, decode, record)
            prefilled = await step.run(decision.prefill, self._select_headers(head.headers))
        except PrefillFailed as failed:
            return self._aggregate(request, decode, record, failed)
        return self._hand_over(request, prefilled, decode, record)

    def _find_model(self, request: InferenceRequest) -> ModelPods:
        view = self.cache.view
        pods = view.models.get(request.model)
        if pods is None:
            if not self.cache.synced:
                raise _refuse_for_now(503, "no_ready_pod", "the pods are not known yet")
            names = view.ambiguous.get(request.model)
            if names is not None:
                message = f"model {request.model!r} is ambiguous: ask for {' or '.join(names)}"
                raise RequestRejected(400, "model_ambiguous", message, "model")
            message = f"model {request.model[:200]!r} does not exist"
            raise RequestRejected(404, "model_not_found", message, "model")
        return pods

    async def _check_route(self, model: str) -> None:
        if self.routes is None:
            return
        try:
            await self.routes.check(model)
        except RouteUnavailable as unavailable:
            raise _refuse_for_now(503, "route_unavailable", str(unavailable)) from unavailable

    def _find_strategy(self, headers: Mapping[str, str]) -> Strategy | None:
        name = headers.get(ROUTING_STRATEGY, "").strip() or self.policy.default_strategy
        if name is None:
            return None
        strategy = self.strategies.get(name)
        if strategy is None:
            known = ", ".join(self.strategies)
            message = f"routing strategy {name[:200]!r} is none of {known}"
            raise RequestRejected(400, "invalid_routing_strategy", message, ROUTING_STRATEGY)
        return strategy

    def _describe(self, request: InferenceRequest, pods: ModelPods) -> RoutingFacts:
        """Return what strategies need to know of a request."""
        prompt = request.prompt or request.body.data
        tokens = count_token_ids(prompt)
        if tokens is None:
            tokens = self.prefilling.ratios.estimate(pods.model, len(prompt))
        expected = self.policy.expected_output_tokens
        split = request.whole is None and pods.disaggregated
        return RoutingFacts(
            tokens,
            request.whole,
            hash_prompt(request) if split else NO_PREFIX,
            min(request.max_output_tokens or expected, expected),
        )

    def _decide(
        self, strategy: Strategy, facts: RoutingFacts, pods: ModelPods, record: RequestRecord
    ) -> Decision:
        start = time.perf_counter()
        try:
            decision = self._choose(strategy, facts, pods)
        except NoReadyPod as missing:
            raise _refuse_for_now(503, "no_ready_pod", str(missing)) from missing
        record.routing_s = time.perf_counter() - start
        record.decision = decision
        record.aggregated = decision.reason
        self.observer.request_routed(record)
        if decision.prefill is not None:
            self._admit(decision.prefill.pod)
        return decision

    def _choose(self, strategy: Strategy, facts: RoutingFacts, pods: ModelPods) -> Decision:
        policy = self.policy
        try:
            decision = strategy.decide(facts, pods, self.state)
        except NoReadyPod:
            if facts.whole or policy.aggregation is Aggregation.NEVER:
                raise
            return strategy.decide(replace(facts, whole="no-ready-pair"), pods, self.state)
        if (
            decision.prefill is not None
            and policy.aggregation is Aggregation.WHEN_FASTER
            and is_faster_whole(decision, facts, self.state, policy.handover_s)
        ):
            return replace(decision, prefill=None, reason="faster")
        return decision

    def _admit(self, prefill: Pod) -> None:
        """Refuse a request that would wait too long, before any work is done for it."""
        limit = self.policy.max_wait_s
        if limit is None:
            return
        wait = self.state.ledger.predict_prefill_wait(prefill.uid)
        if wait > limit:
            message = f"the prefill queue is {wait:.1f} s long, and may be {limit:g} s"
            raise _refuse_for_now(429, "overloaded", message, ceil(wait - limit))

    def _select_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        names = (*FORWARDED_TO_PREFILL, *self.policy.forward_headers)
        return {name: headers[name] for name in names if name in headers}

    def _hand_over(
        self, request: InferenceRequest, prefilled: Prefilled, decode: Pod, record: RequestRecord
    ) -> Dispatched:
        try:
            body = self._put_handle(request, prefilled)
        except HandoffInvalid as invalid:
            record.handoff = invalid.reason
            if self.policy.on_handoff_failure is FailurePolicy.FAIL:
                raise RequestRejected(
                    502, "handoff_invalid", f"the prefill leg gave no KV handle: {invalid}"
                ) from invalid
            record.aggregated = f"handoff-{invalid.reason}"
            return Dispatched(whole_body(request), prefilled.request_id, decode)
        return Dispatched(body, prefilled.request_id, decode)

    def _put_handle(self, request: InferenceRequest, prefilled: Prefilled) -> bytes:
        connector = self.connectors.get(prefilled.pod.kv_connector)
        body = connector.decode_body(request, prefilled.answer.body, prefilled.pod)
        if len(body) > self.policy.max_forwarded_bytes:
            # Envoy would refuse it, as if the client's body were too large.
            raise HandoffInvalid("too-large", "with the handle, the body is too large")
        return body

    def _aggregate(
        self, request: InferenceRequest, decode: Pod, record: RequestRecord, failed: PrefillFailed
    ) -> Dispatched:
        """Let the decode pod serve the whole request, or give the error that its prefill met."""
        if self.policy.on_prefill_failure is FailurePolicy.FAIL:
            raise _describe_failure(failed) from failed
        record.aggregated = "prefill-failed"
        return Dispatched(whole_body(request), record.request_id, decode)


def _refuse_for_now(
    status: int, code: str, message: str, seconds: int = RETRY_AFTER_S
) -> RequestRejected:
    headers = (("retry-after", str(seconds)),)
    return RequestRejected(status, code, message, headers=headers)


def _describe_failure(failed: PrefillFailed) -> RequestRejected:
    last = failed.last
    # Addresses of pods are for the log.
    message = f"the prefill leg failed after {failed.attempts} attempt(s): {last.failure}"
    if last.failure is FailureKind.TIMEOUT:
        return RequestRejected(504, "prefill_timeout", message)
    if last.status == 503:
        return _refuse_for_now(503, "prefill_unavailable", message)
    return RequestRejected(502, "prefill_failed", message)
