"""What is done in each phase of a request, and how Envoy is answered."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import structs

from pdrouter.engines.split import Leg
from pdrouter.engines.vllm.priority import STATUSES
from pdrouter.extproc import own_answers
from pdrouter.extproc.answer_attributes import read_attributes
from pdrouter.extproc.explanation import explain
from pdrouter.extproc.forwarding import forward, join_trace, strip
from pdrouter.extproc.front_door import admit, no_body
from pdrouter.extproc.immediate import answer, complete
from pdrouter.extproc.messages import (
    BodyMode,
    Event,
    Headers,
    ImmediateReply,
    ModeOverride,
    Phase,
    PhaseReply,
    Reply,
    RequestBody,
    RequestHeaders,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from pdrouter.extproc.modes import ask_for_answer, headers_skipped, pass_on, skip_answer
from pdrouter.extproc.request_ids import read_client_id
from pdrouter.extproc.shared import Shared
from pdrouter.extproc.stored_requests import forward_stored
from pdrouter.load.failures import CONNECT
from pdrouter.openai.header_values import is_asked
from pdrouter.openai.headers import DECISION_DETAIL
from pdrouter.openai.paths import ENDPOINTS, split_path
from pdrouter.serving.answers import (
    SEEN_FIRST_TOKEN,
    SEEN_POD,
    AnswerWatch,
    RoutedRequest,
    begin_watch,
)
from pdrouter.serving.call import Call
from pdrouter.serving.companion import Companion
from pdrouter.serving.dispatched import Completed, Dispatched, RequestHead
from pdrouter.serving.identities import NOBODY
from pdrouter.serving.last_leg import ATTEMPTS, Judgement, is_unseen, judge_answer
from pdrouter.serving.last_leg_lessons import LastLegLessons
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.pod_outcomes import SentLeg
from pdrouter.serving.record import Outcome
from pdrouter.serving.refusals import refuse_reused
from pdrouter.serving.steps import Step

log = logging.getLogger(__name__)

_TRAILERS_SKIPPED = "a request without a body went to a pod: set request_trailer_mode to SEND"
_OK, _RESPONSE_HEADERS = Outcome.OK, Phase.RESPONSE_HEADERS
_LEAST_ERROR, _LEAST_FAILURE = 400, 500
_UNKNOWN_STATUS = 500


class Phases:
    """The phases of one request. Which may follow which is for the exchange to know.

    Every method takes the event of its phase and returns the reply; None where there is none.

    Attributes:
        read_gateway_trace: gives the `traceparent` of the gateway's span; empty if it has none.
        response_mode: how the filter sends bodies of responses; None if it is not known.

    Raises:
        RequestRejected: the client gets an error of the router's own.
        LegRefused: the client gets the engine's error.
    """

    __slots__ = (
        "_call",
        "_chosen",
        "_generates_text",
        "_head",
        "_lessons",
        "_outcomes",
        "_record",
        "_sent",
        "_shared",
        "_watch",
        "read_gateway_trace",
        "response_mode",
    )

    def __init__(self, call: Call, shared: Shared) -> None:
        self._call = call
        self._shared = shared
        self._record = call.record
        self._outcomes = shared.dispatcher.legs.lessons.outcomes
        self._head: RequestHead | None = None
        self._generates_text = False
        self._chosen: OpenDecision | None = None
        self._sent: SentLeg | None = None
        self._watch: AnswerWatch | None = None
        self._lessons: LastLegLessons | None = None
        self.read_gateway_trace: Callable[[], str] = str
        self.response_mode: BodyMode | None = None

    def close(self) -> None:
        """Tell what was seen, once the stream has ended."""
        record = self._record
        companion = self._call.companion
        # Where a leg was waited for in vain that waits for the other one, both are suspects.
        silent = record.outcome is None or (companion is not None and companion.timed_out)
        if record.outcome is None:
            record.outcome = Outcome.CLIENT_LEFT
        if silent and self._sent is not None:
            self._outcomes.note_silence(self._sent.pod, Leg.DECODE, self._sent.began)
        if self._watch is not None and (report := self._watch.report(record)) is not None:
            self._shared.answers.receive(report)
        if self._lessons is not None:
            self._lessons.close()

    async def on_request_headers(self, event: RequestHeaders) -> Reply | None:
        """Let in what is served, and remove what the client may not say."""
        headers, record = event.headers, self._record
        if self._shared.begin_trace is not None:
            record.trace = self._shared.begin_trace(headers, self.read_gateway_trace())
            if record.trace is not None and record.trace.own.sampled:
                record.steps.intervals = []
        record.path, query = split_path(headers.get(":path", ""))
        record.method = headers.get(":method", "")
        record.client_request_id = read_client_id(headers)
        identity = NOBODY
        if self._shared.identities is not None and record.path not in own_answers.PUBLIC_PATHS:
            identity = await self._shared.identities.identify(headers)
        if identity.user is not None:
            self._call.user, record.user = identity.user, identity.user.name
        if record.path not in ENDPOINTS:
            cache = self._shared.cache
            own = own_answers.answer(record.path, record.method, cache, identity.user)
            if own is not None:
                record.outcome = Outcome.ANSWERED
                return answer(own.status, own.body, record)
        policy = self._shared.policy
        changes = policy.change_headers(identity)
        admitted = admit(event, record.path, query, changes)
        policy.header_limits.check_request(event)
        reply = strip(self.response_mode, headers, changes)
        if isinstance(admitted, str):
            call, way = self._call, self._shared.dispatcher
            return await forward_stored(reply, admitted, headers, call, way, policy=policy)
        self._head = admitted
        self._generates_text = admitted.endpoint.legs == 2
        return reply

    def expect_body(self, size: int) -> None:
        """Keep room for the body, which comes in a message of so many bytes.

        Raises:
            RequestRejected: there is none.
        """
        # Whether the body itself is too large shows when it is there.
        self._call.hold_body(self._shared.bodies, min(size, self._shared.bodies.largest))

    async def on_request_body(self, event: RequestBody) -> Reply | None:
        """Find the request's way, run its side legs, and send it on."""
        if self._head is None:
            raise RuntimeError("a body without headers passed the table")
        if not event.body:
            raise no_body()
        self._call.hold_body(self._shared.bodies, len(event.body))
        dispatched = await self._shared.dispatcher.dispatch(self._head, event.body, self._call)
        if not isinstance(dispatched, Dispatched):
            return self._complete(dispatched)
        reply = self._forward(dispatched)
        if self._record.trace is not None:
            reply = join_trace(reply, self._record.trace, dispatched.pod)
        self._record.forwarded = True
        return reply

    async def on_response_headers(self, event: ResponseHeaders) -> Reply | None:
        """Judge the head of the answer, and explain the decision to the client."""
        record, status = self._record, self._note_response(event)
        attributes = read_attributes(event)
        sent = self._sent
        if sent is not None and sent.second is not None:
            sent = self._follow(sent, attributes)
        decision, served_by = record.decision, attributes.get("upstream.address")
        if decision is not None and served_by not in (None, "", decision.last.pod.address):
            # One that was not chosen: Envoy falls back if it does not know the chosen one.
            record.served_by = str(served_by)
        if sent is None:
            judgement = judge_answer(status, event.headers, attributes)
        else:
            judgement = self._outcomes.note_answer(sent, status, event.headers, attributes)
        companion = self._call.companion
        if companion is not None and not await self._join(companion, judgement, status):
            return None
        if judgement.from_engine:
            record.outcome = _OK if status < 400 else Outcome.ENGINE_ERROR
            if status in STATUSES:
                self._doubt_priority()
            if self._lessons is not None:
                self._lessons.note_status(status)
        else:
            self._note_local_reply(attributes)
            record.unseen = is_unseen(attributes)
            if record.unseen:
                self._give_up_blocks(unreachable=judgement.cause == CONNECT)
        self._call.handle = None
        if judgement.from_engine and sent and sent.is_sent_too_often(attributes.get(ATTEMPTS)):
            record.handoff = "sent-twice"
            raise refuse_reused()
        mode = None if event.end_of_stream else self._choose_mode(event)
        return self._explain_in(event, mode)

    def _doubt_priority(self) -> None:
        """Ask an engine again whether it takes priorities that may have refused one."""
        if Leg.DECODE not in self._record.ranked_legs:
            return
        sent, chosen, head = self._sent, self._chosen, self._head
        if sent is not None and chosen is not None and head is not None:
            self._shared.dispatcher.doubt_priority(sent.pod, chosen, head)

    def _complete(self, completed: Completed) -> ImmediateReply:
        """Answer a request of which the side legs have left nothing to do."""
        reply = complete(completed, self.explain())
        self._record.outcome = Outcome.OK
        if self._generates_text:
            head = {"content-type": completed.content_type}
            self._watch = begin_watch(self._shared.policy.observation, head, self._record)
            self._watch.see(completed.body, self._record)
        return reply

    def _forward(self, dispatched: Dispatched) -> PhaseReply:
        record, policy = self._record, self._shared.policy
        self._chosen = chosen = dispatched.chosen
        if dispatched.pod is not None and chosen is not None:
            self._sent = self._outcomes.send(
                dispatched.pod,
                dispatched.model,
                record.path,
                split=record.prefill_pod is not None and not record.aggregated,
                second=self._shared.dispatcher.find_second(record.model, chosen),
            )
            self._lessons = self._shared.dispatcher.learn_from(chosen, record)
        metadata = None
        if policy.observation.access_log:
            second = self._sent.second if self._sent else None
            generates = self._generates_text
            metadata = RoutedRequest.describe(record, generates, second).to_metadata()
        names = self._shared.dispatcher.policy.names_second
        return forward(dispatched, self._sent, record.asked_strategy, metadata, names_second=names)

    def _follow(self, sent: SentLeg, attributes: Mapping[str, Any]) -> SentLeg:
        """Return the leg as Envoy has carried it out: on the second pod, if it came to that."""
        chosen, second = self._chosen, sent.second
        if chosen is None or second is None or not self._outcomes.note_second(sent, attributes):
            return sent
        chosen.move_last(second)
        self._sent = structs.replace(sent, pod=second, second=sent.pod)
        return self._sent

    async def _join(self, companion: Companion, judgement: Judgement, status: int) -> bool:
        """Hold a good answer back until the leg that runs beside it is good, too.

        Until the client has seen anything, a leg that fails ends in a clean error.

        Returns:
            Whether the request goes on.
        """
        if not judgement.from_engine or status >= _LEAST_ERROR:
            companion.excused = True
            self._call.stop()
            if judgement.from_engine and status >= _LEAST_FAILURE:
                self._shared.dispatcher.legs.note_last_failed(companion)
            elif judgement.from_engine:
                # It has not asked for blocks, and cannot free them: their name was not known yet.
                self._give_up_blocks()
            return True
        with Step(self._record.steps, "companion", waits=True):
            await companion.wait_good()
        companion.joined = companion.good
        return not self._call.failed

    def _give_up_blocks(self, *, unreachable: bool = False) -> None:
        """Have the blocks freed that the engine of the last leg will not ask for."""
        if self._head is not None and self._chosen is not None:
            self._shared.dispatcher.hold_companion(self._chosen, self._head, self._call)
        self._call.give_up_handle(unreachable=unreachable)

    async def on_local_reply(self, event: ResponseHeaders) -> Reply | None:
        """Explain an answer that Envoy gives by itself while the request's body is to come."""
        attributes = event.attributes
        if attributes.get("upstream.address"):
            log.warning(_TRAILERS_SKIPPED, extra=self._record.log_fields)
            raise no_body()
        self._note_response(event)
        self._note_local_reply(attributes)
        return self._explain_in(event)

    async def on_earlier_answer(self, event: ResponseHeaders) -> Reply | None:
        """Let an answer of a filter before this one (CORS, authentication) pass untouched."""
        attributes = event.attributes
        if attributes.get("upstream.address"):
            raise headers_skipped()
        self._note_response(event)
        self._note_local_reply(attributes)
        mode = None if event.end_of_stream else skip_answer(self.response_mode)
        return PhaseReply(Phase.RESPONSE_HEADERS, mode_override=mode)

    async def on_rest_of_earlier_answer(
        self, event: ResponseBody | ResponseTrailers
    ) -> Reply | None:
        """Let an answer pass whose headers the filter has skipped."""
        self._note_local_reply({})
        return await self.pass_on(event)

    async def on_response_body(self, event: ResponseBody) -> Reply | None:
        """Look at a piece of the answer as it passes."""
        if self._lessons is not None:
            self._lessons.see(event.body)
        reply = pass_on(event, self.response_mode)
        begins = self._watch is not None and self._watch.see(event.body, self._record)
        if begins and self._shared.policy.observation.access_log:
            reply = structs.replace(reply, dynamic_metadata=SEEN_FIRST_TOKEN)
        return reply

    async def pass_on(self, event: Event) -> Reply | None:
        """Let a message pass as it is."""
        return pass_on(event, self.response_mode)

    def explain(self) -> Headers:
        """Return the headers that tell the client what was done for it, however far that is."""
        policy, head, in_detail = self._shared.policy, self._head, False
        if policy.explain_decisions and head is not None:
            in_detail = is_asked(head.headers, DECISION_DETAIL)
        return explain(self._record, expose_pods=policy.expose_pods, in_detail=in_detail)

    def _explain_in(self, event: ResponseHeaders, mode: ModeOverride | None = None) -> PhaseReply:
        headers = self._shared.policy.header_limits.keep_fitting(self.explain(), event)
        # The log tells of misrouting, too: also of requests without an answer.
        seen = SEEN_POD if self._record.served_by else None
        return PhaseReply(
            _RESPONSE_HEADERS, set_headers=headers, mode_override=mode, dynamic_metadata=seen
        )

    def _choose_mode(self, event: ResponseHeaders) -> ModeOverride | None:
        """Return whether Envoy is to send the response's body; None for as it is configured."""
        record, policy, waits = self._record, self._shared.policy, False
        if record.outcome is _OK and self._generates_text:
            self._watch = begin_watch(policy.observation, event.headers, record)
            waits = self._lessons is not None and self._lessons.wait_for_first_token()
        if not (waits or (self._watch is not None and self._watch.counts)):
            return skip_answer(self.response_mode)
        return ask_for_answer(self.response_mode)

    def _note_response(self, event: ResponseHeaders) -> int:
        text = event.headers.get(":status", "")
        self._record.status = status = int(text) if text.isdecimal() else _UNKNOWN_STATUS
        self._record.headers_s = self._record.elapsed_s
        return status

    def _note_local_reply(self, attributes: Mapping[str, Any]) -> None:
        self._record.outcome = Outcome.LOCAL_REPLY
        self._record.local_reply = str(attributes.get("response.code_details") or "")
