"""From a request's body to the pod that it goes to: validate, choose, run side legs, hand over."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.source import RouteCheck
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, find_locator, whole_body
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import HandoffInvalid, Leg, Placement
from pdrouter.openai.media_items import MediaItem
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.openai.stored_responses import name_response
from pdrouter.openai.streams import wants_usage, write_stream
from pdrouter.routing.runner_up import find_runner_up
from pdrouter.serving.call import Call
from pdrouter.serving.choosing import PodChooser
from pdrouter.serving.companion import Companion
from pdrouter.serving.dispatched import Completed, Dispatched, RequestHead
from pdrouter.serving.drains import Drains
from pdrouter.serving.encoding import EncodeLegs
from pdrouter.serving.gate import Gate
from pdrouter.serving.hand_over import hand_over
from pdrouter.serving.last_leg_lessons import LastLegLessons
from pdrouter.serving.leg_outcome import LegAnswer, LegFailed
from pdrouter.serving.leg_requests import LegRequests
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.own_paths import find_own_path
from pdrouter.serving.own_route import check_route
from pdrouter.serving.permissions import check_model
from pdrouter.serving.policy import DispatchPolicy
from pdrouter.serving.priorities import Priorities
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.refusals import describe_failure, refuse_handle, refuse_too_large
from pdrouter.serving.release import Releases
from pdrouter.serving.steps import Step
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.serving.unsplittable import REASON as NOT_PREFILLABLE
from pdrouter.settings.choices import Aggregation, FailurePolicy

_WHEN_FASTER = Aggregation.WHEN_FASTER
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_STILL_GOOD = frozenset({"too-large", "late"})
"""Why a handle is not handed over whose blocks an engine holds all the same."""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Finds the way of requests. One for the whole process.

    Attributes:
        chooser: chooses pods.
        legs: runs the legs that Envoy does not run.
        encoders: have media encoded before these.
        splits: how engines split requests.
        tokenizers: count prompts' tokens.
        releases: have blocks freed that nobody fetches.
        drains: own side legs that end after their request.
        priorities: tell engines when requests are due.
        policy: what the operator decided.
        gate: lets requests in, as far as limits have room.
        forwarded: names of the client's headers that engines of side legs get.
        routes: checks the models' own routes, for requests without a strategy; None to pass them
            unchecked.
    """

    chooser: PodChooser
    legs: SideLegs
    encoders: EncodeLegs
    splits: Splits
    tokenizers: PromptTokenizers
    releases: Releases
    drains: Drains
    priorities: Priorities
    policy: DispatchPolicy
    gate: Gate
    forwarded: tuple[str, ...]
    routes: RouteCheck | None = None

    async def dispatch(self, head: RequestHead, data: bytes, call: Call) -> Dispatched | Completed:
        """Find the way of one request, and run its prefill leg.

        Args:
            head: the client's headers.
            data: the client's body.
            call: what is filled in on the way, and gets what must be released in the end.

        Raises:
            RequestRejected: the router answers with an error of its own.
            LegRefused: the client gets the engine's error.
        """
        record = call.record
        request, pods = self._parse(head, data, call)
        counted = None
        if self.tokenizers.can_count(request):
            with Step(record.steps, "tokens", waits=True):
                counted = await self.tokenizers.count(request)
            pods = self.chooser.models.find(request.model)  # Some may have come and gone.
        media: Sequence[MediaItem] = ()
        if self.chooser.cache.view.encoding and self.encoders.concerns(request, pods):
            request, media = await self.encoders.take_media(request, pods, record)
            pods = self.chooser.models.find(request.model)
        tokens = counted or self.chooser.count_prompt_tokens(request, media)
        if self.gate.guards(call.user, pods):
            await self._admit(request, pods, head, call, tokens)
            pods = self.chooser.models.find(request.model)
        routed = await self.chooser.choose(request, pods, head.headers, record, tokens, media=media)
        if routed is None:
            with Step(record.steps, "route-check", waits=True):
                await check_route(self.routes, pods, self.chooser.cache)
            headers, body = find_own_path(request, pods.pods), whole_body(request)
            return Dispatched(body, record.request_id, None, pods.model, headers=headers)
        chosen = call.chosen = OpenDecision(routed, self.chooser.router.state, record)
        whole, encode = routed.decision.whole, routed.decision.encode
        if whole and not encode:
            return self._dispatch_whole(request, chosen, head, record)
        self.legs.budget.count_request(request.model)
        # Envoy waits for the reply no longer, whatever the request has waited for.
        left_s = self.legs.total_s - record.queued_s
        requests = LegRequests(request, time.monotonic() + left_s)
        if encode:
            requests = await self._encode(requests, media, chosen, head, call)
        if whole:
            return self._dispatch_encoded(requests, chosen, head, call)
        return await self._dispatch_split(requests, chosen, head, call)

    def _parse(
        self, head: RequestHead, data: bytes, call: Call
    ) -> tuple[InferenceRequest, ModelPods]:
        """Return what is asked for, and the pods of its model."""
        record = call.record
        record.body_bytes = len(data)
        began = time.perf_counter()
        try:
            request = parse_request(
                head.endpoint,
                head.query,
                data,
                transfer_members=TRANSFER_MEMBERS,
                split_multimodal=self.policy.split_multimodal,
                content_type=head.headers.get("content-type", ""),
            )
        finally:
            record.steps.end("parse", began)
        if self.policy.trust_ec_locator and (locator := find_locator(request)) is not None:
            request = request.trust_locator(locator)
        request = self.priorities.take_over(request, head.headers)
        record.stream = request.stream
        if call.user is not None:
            check_model(call.user, request.model, self.chooser.cache)
        pods = self.chooser.models.find(request.model)
        record.model = request.model
        if pods.model != request.model:
            request = request.rename(pods.model)
        return request, pods

    async def _admit(
        self,
        request: InferenceRequest,
        pods: ModelPods,
        head: RequestHead,
        call: Call,
        prompt_tokens: int,
    ) -> None:
        """Let a request in, as far as its limits have room; its call gives back what it takes."""
        call.admission = await self.gate.admit(
            call.user,
            pods,
            call.record,
            tokens=self.chooser.reserve_tokens(request, pods.model, prompt_tokens),
            per_second=self.chooser.find_rate(request, pods, head.headers, prompt_tokens),
        )

    async def _encode(
        self,
        requests: LegRequests,
        media: Sequence[MediaItem],
        chosen: OpenDecision,
        head: RequestHead,
        call: Call,
    ) -> LegRequests:
        """Have the media of a request encoded: if that fails, so does the request."""
        try:
            return await self.encoders.run(requests, media, chosen, self._forward(head), call)
        except LegFailed as failed:
            raise describe_failure(failed, expose_pods=self.policy.expose_pods) from failed
        finally:
            if chosen.routed.turn is not None:
                chosen.routed.turn.begin()

    def _dispatch_encoded(
        self, requests: LegRequests, chosen: OpenDecision, head: RequestHead, call: Call
    ) -> Dispatched:
        """Find the way of a request for one pod, which takes what others have encoded for it."""
        taker = chosen.decision.taker
        self._settle_last(requests.client, chosen, (), head, call)
        same = chosen.decision.taker.encoding == taker.encoding
        request = requests.prompt if same else requests.client
        dispatched = self._dispatch_whole(request, chosen, head, call.record)
        if len(dispatched.body) > self.policy.max_forwarded_bytes:
            raise refuse_too_large()
        return dispatched

    def _settle_last(
        self,
        request: InferenceRequest,
        chosen: OpenDecision,
        answers: Sequence[LegAnswer],
        head: RequestHead,
        call: Call,
    ) -> None:
        """Hold the handle of the side legs, and choose another last pod if that has gone."""
        holder = None
        if answers:
            holder, last = answers[-1].pod, chosen.decision.last.pod
            call.handle = self.releases.hold(answers[-1], last, request.model, head.headers)
        replaced = self.chooser.replace_last(request.model, chosen.routed, holder, call.record)
        if replaced is not None:
            chosen.change(replaced)

    def hold_companion(self, chosen: OpenDecision, head: RequestHead, call: Call) -> None:
        """Hold the handle of a side leg that ran beside the last one, if its engine keeps blocks.

        One that has not answered stops with its connection, and keeps none.
        """
        companion = call.companion
        done = None if companion is None or companion.tried is None else companion.tried.done
        if done is not None:
            split = self.splits.find(done.pod.engine, done.pod.kv_connector)
            if split.release(done) is not None:
                last = chosen.decision.last.pod
                call.handle = self.releases.hold(done, last, call.record.model, head.headers)

    def find_second(self, model: str, chosen: OpenDecision) -> Pod | None:
        """Return the pod that takes a request if Envoy cannot connect to the chosen one."""
        if not self.policy.names_second or chosen.routed.facts.kept:
            return None
        pods = self.chooser.cache.view.models.get(model)
        if pods is None:
            return None
        return find_runner_up(chosen.decision, pods, self.chooser.router.state)

    def learn_from(self, chosen: OpenDecision, record: RequestRecord) -> LastLegLessons | None:
        """Return what learns from a request that is sent to its last pod now; None for nobody."""
        router = self.chooser.router
        if router.rules.aggregation is not _WHEN_FASTER:
            return None
        return LastLegLessons(chosen, router.state, record)

    def doubt_priority(self, pod: Pod, chosen: OpenDecision, head: RequestHead) -> None:
        """Have an engine asked again that has refused what had a priority."""
        self.priorities.doubt(pod, chosen.routed.pods.model, self._forward(head))

    async def _dispatch_split(
        self, requests: LegRequests, chosen: OpenDecision, head: RequestHead, call: Call
    ) -> Dispatched | Completed:
        """Run the side legs of a request, and find the way of the last one."""
        record, request = call.record, requests.client
        forwarded = self._forward(head)
        answers: list[LegAnswer] = []
        try:
            for choice in chosen.decision.side:
                done = await self.legs.run(choice.leg, requests, chosen, forwarded, call)
                if isinstance(done, Companion):
                    return self._join(requests.last, chosen, done, head, call)
                answers.append(done)
        except LegFailed as failed:
            record.aggregated = self._choose_whole(failed, chosen)
            answers = []
        if answers:
            answer, model = answers[-1], chosen.routed.pods.model
            split = self.splits.find(answer.pod.engine, answer.pod.kv_connector)
            final = split.find_final_answer(answers)
            if final is not None:
                return self._complete(final, request, answer, model)
        self._settle_last(request, chosen, answers, head, call)
        if not answers or chosen.decision.whole:
            call.give_up_handle()
            return self._dispatch_whole(request, chosen, head, record)
        began = time.perf_counter()
        try:
            last = self._rank_last(requests.last, chosen, head, record)
            body, headers = hand_over(
                last, split, chosen.pods, answers, self.policy.max_forwarded_bytes
            )
            self.legs.lessons.outcomes.note_usable(answer, model)
        except HandoffInvalid as invalid:
            self._note_invalid(invalid, answer, model, call)
            body, headers = whole_body(last.with_edits(request.edits)), _NO_HEADERS
        finally:
            record.steps.end("hand-over", began)
        return Dispatched(body, answer.request_id, chosen.decision.last.pod, model, chosen, headers)

    def _join(
        self,
        request: InferenceRequest,
        chosen: OpenDecision,
        companion: Companion,
        head: RequestHead,
        call: Call,
    ) -> Dispatched:
        """Return the last leg, for which the side leg beside it waits."""
        holder = companion.pod
        with Step(call.record.steps, "hand-over"):
            request = self._rank_last(request, chosen, head, call.record)
            placement = Placement(chosen.pods, companion.request_id, companion.peer)
            split = self.splits.find(holder.engine, holder.kv_connector)
            body = split.last_body(request, placement, ())
            headers = split.last_headers(placement, ())
        if len(body) > self.policy.max_forwarded_bytes:
            self.hold_companion(chosen, head, call)
            raise refuse_too_large()
        pod, model = chosen.decision.last.pod, chosen.routed.pods.model
        return Dispatched(body, companion.request_id, pod, model, chosen, headers)

    def _complete(
        self, final: bytes, request: InferenceRequest, answer: LegAnswer, model: str
    ) -> Completed:
        """Return the answer to a request that needs no last leg."""
        self.legs.lessons.outcomes.note_usable(answer, model)
        if not request.stream:
            return Completed(final, "application/json")
        stream = write_stream(final, with_usage=wants_usage(request.body))
        return Completed(stream, "text/event-stream; charset=utf-8")

    def _choose_whole(self, failed: LegFailed, chosen: OpenDecision) -> str:
        """Return why a request is served whole whose side leg has failed.

        Raises:
            RequestRejected: it is not.
        """
        if chosen.decision.last.pod.serves_whole and failed.leg is not Leg.ENCODE:
            if failed.unsplittable:
                return NOT_PREFILLABLE
            if self.policy.on_prefill_failure is FailurePolicy.AGGREGATE:
                return "prefill-failed"
        raise describe_failure(failed, expose_pods=self.policy.expose_pods) from failed

    def _forward(self, head: RequestHead) -> Mapping[str, str]:
        """Return the client's headers that engines of side legs get."""
        headers = head.headers
        return {name: headers[name] for name in filter(headers.__contains__, self.forwarded)}

    def _rank_last(
        self,
        request: InferenceRequest,
        chosen: OpenDecision,
        head: RequestHead,
        record: RequestRecord,
    ) -> InferenceRequest:
        """Return the request as the engine of the last leg gets it, and the second one may."""
        if record.priority is None:
            return request
        last = chosen.decision.last
        second = self.find_second(record.model, chosen)
        pods = (last.pod,) if second is None else (last.pod, second)
        return self.priorities.rank(request, last.leg, pods, record, self._forward(head), once=True)

    def _dispatch_whole(
        self,
        request: InferenceRequest,
        chosen: OpenDecision,
        head: RequestHead,
        record: RequestRecord,
    ) -> Dispatched:
        """Return the way of a request that the last pod serves whole."""
        pod, model = chosen.decision.last.pod, chosen.routed.pods.model
        request = name_response(request, pod.uid, record.user)
        body = whole_body(self._rank_last(request, chosen, head, record))
        return Dispatched(
            body, record.request_id, pod, model, chosen, find_own_path(request, (pod,))
        )

    def _note_invalid(
        self, invalid: HandoffInvalid, answer: LegAnswer, model: str, call: Call
    ) -> None:
        """Take a handle that cannot be handed over; the request is served whole instead.

        Raises:
            RequestRejected: it is not.
        """
        record = call.record
        if invalid.reason in _STILL_GOOD:
            call.give_up_handle()
        call.handle = None
        record.handoff = invalid.reason
        self.legs.lessons.outcomes.note_unusable(answer, model, invalid.reason)
        if self.policy.on_handoff_failure is FailurePolicy.FAIL:
            raise refuse_handle(invalid) from invalid
        record.aggregated = f"handoff-{invalid.reason}"
