"""The life of one HTTP request: an event from Envoy in, a reply out, whatever carries them."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from pdrouter.cluster.failures import Leg
from pdrouter.cluster.view import PodCache
from pdrouter.extproc import own_answers
from pdrouter.extproc.answers import (
    AnswerReports,
    AnswerWatch,
    RoutedRequest,
    begin_watch,
)
from pdrouter.extproc.codec import MessageInvalid, decode
from pdrouter.extproc.dispatch import Dispatcher, RequestHead
from pdrouter.extproc.exchange_policy import ExchangePolicy
from pdrouter.extproc.exchange_state import State
from pdrouter.extproc.explanation import explain
from pdrouter.extproc.forwarding import forward, strip, write
from pdrouter.extproc.front_door import admit, authenticate, no_body
from pdrouter.extproc.header_values import is_asked
from pdrouter.extproc.headers import DECISION_DETAIL
from pdrouter.extproc.held_bodies import HeldBodies
from pdrouter.extproc.immediate import answer, pass_refusal, refuse
from pdrouter.extproc.last_leg import judge_answer
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
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from pdrouter.extproc.modes import (
    ask_for_answer,
    headers_skipped,
    pass_on,
    skip_answer,
)
from pdrouter.extproc.pod_outcomes import SentLeg
from pdrouter.extproc.record import Observer, Outcome, RequestRecord
from pdrouter.extproc.request_ids import create_request_id, read_client_id
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.paths import split_path
from pdrouter.prefill.leg import PrefillRefused

log = logging.getLogger(__name__)

_FILTER = "envoy.filters.http.ext_proc"
_TRAILERS_SKIPPED = "a request without a body went to a pod: set request_trailer_mode to SEND"


_Step: TypeAlias = Callable[["Exchange", Any], Awaitable[Reply]]


def _refusing(create_error: Callable[[], RequestRejected]) -> _Step:
    async def refuse(exchange: "Exchange", event: Event) -> Reply:
        del exchange, event
        raise create_error()

    return refuse


class Exchange:
    """One request. Feed it with events, in order; close it when the stream has ended.

    Attributes:
        record: what is known of the request so far.
    """

    __slots__ = (
        "_answers",
        "_bodies",
        "_cache",
        "_dispatcher",
        "_head",
        "_held",
        "_observer",
        "_outcomes",
        "_policy",
        "_response_mode",
        "_scopes",
        "_sent",
        "_start",
        "_state",
        "_watch",
        "record",
    )

    def __init__(
        self,
        dispatcher: Dispatcher,
        cache: PodCache,
        observer: Observer,
        answers: AnswerReports,
        policy: ExchangePolicy,
        *,
        bodies: HeldBodies,
    ) -> None:
        self._answers = answers
        self._bodies = bodies
        self._dispatcher = dispatcher
        self._cache = cache
        self._observer = observer
        self._outcomes = dispatcher.prefilling.outcomes
        self._policy = policy
        self._state = State.START
        self._start = time.perf_counter()
        self._scopes = ExitStack()
        self._held = ExitStack()
        self._head: RequestHead | None = None
        self._sent: SentLeg | None = None
        self._response_mode: BodyMode | None = None
        self._watch: AnswerWatch | None = None
        self.record = RequestRecord(create_request_id())
        self._observer.request_started(self.record)

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to say: the stream is to be ended."""
        return self._state is State.ENDED

    async def receive(self, data: bytes) -> bytes | None:
        """Answer a message of the ext_proc stream; None if there is no answer to it."""
        try:
            event = decode(data)
        except MessageInvalid as invalid:
            reply = self._give_up(f"a message cannot be read: {invalid.reason}")
        else:
            # The message has a copy of the body, which would stay for as long as prefill takes.
            del data
            reply = await self.handle(event)
        return None if reply is None else write(reply)

    async def handle(self, event: Event) -> Reply | None:
        """Answer an event; None if there is no answer to it. Raises nothing but cancellation."""
        entered = time.perf_counter()
        waited = self.record.steps.waited_s
        if event.protocol_config is not None:
            self._response_mode = event.protocol_config.response_body_mode
        try:
            if self._state is State.ENDED:
                return None
            if event.observability_mode:
                self._give_up("the filter is in observability mode: it ignores all replies")
                return None
            step = self._STEPS.get((self._state, type(event)))
            if step is None:
                return self._give_up(f"{event.phase} arrived in state {self._state.name}")
            return await step(self, event)
        except RequestRejected as rejected:
            return self._reject(rejected)
        except PrefillRefused as refused:
            self.record.outcome = Outcome.ENGINE_ERROR
            return self._end(pass_refusal(refused.answer, self._explain()))
        except Exception:
            log.exception("request failed", extra=self._log_fields)
            return self._reject(RequestRejected(500, "internal_error", "internal error"))
        finally:
            spent = time.perf_counter() - entered
            self.record.overhead_s += spent - (self.record.steps.waited_s - waited)

    def let_go(self) -> None:
        """Release the memory of the body. Call it once Envoy has the reply."""
        self._held.close()

    def close(self) -> None:
        """Release all that is counted for the request. Call it once, however the stream ended."""
        self.let_go()
        self._scopes.close()
        self._state = State.ENDED
        record = self.record
        record.total_s = time.perf_counter() - self._start
        if record.outcome is None:
            record.outcome = Outcome.CLIENT_LEFT
            if self._sent is not None:
                self._outcomes.note_silence(self._sent.pod, Leg.DECODE, self._sent.began)
        if self._watch is not None:
            self._answers.receive(self._watch.report(record))
        self._observer.request_finished(record)

    async def _on_request_headers(self, event: RequestHeaders) -> Reply:
        headers, record = event.headers, self.record
        record.path, _ = split_path(headers.get(":path", ""))
        record.method = headers.get(":method", "")
        record.client_request_id = read_client_id(headers)
        if record.path not in own_answers.PUBLIC_PATHS:
            authenticate(headers, self._policy.bearer_token)
        own = own_answers.answer(record.path, record.method, self._cache.view)
        if own is not None:
            record.outcome = Outcome.ANSWERED
            return self._end(answer(own.status, own.body, record))
        self._head = admit(event)
        self._policy.header_limits.check_request(event)
        self._state = State.HEAD
        return strip(self._response_mode)

    async def _on_request_body(self, event: RequestBody) -> Reply:
        if self._head is None:
            raise RuntimeError("a body without headers passed the table")
        if not event.body:
            raise no_body()
        self._held.enter_context(self._bodies.hold(len(event.body)))
        dispatched = await self._dispatcher.dispatch(
            self._head, event.body, self.record, self._scopes
        )
        self._state = State.FORWARDED
        if dispatched.decode is not None:
            split = self.record.prefill_pod is not None and not self.record.aggregated
            self._sent = self._outcomes.send(dispatched.decode, dispatched.model, split=split)
        metadata = None
        if self._policy.observation.access_log:
            request = RoutedRequest.describe(self.record, generates=self._generates_text)
            metadata = request.to_metadata()
        return forward(dispatched, self.record.strategy, metadata)

    async def _on_response_headers(self, event: ResponseHeaders) -> Reply:
        status = self._note_response(event)
        attributes = event.attributes().get(_FILTER, {})
        self._compare_pod(attributes)
        if self._sent is None:
            judgement = judge_answer(status, event.headers, attributes)
        else:
            judgement = self._outcomes.note_answer(self._sent, status, event.headers, attributes)
        if judgement.from_engine:
            self.record.outcome = Outcome.OK if status < 400 else Outcome.ENGINE_ERROR
        else:
            self._note_local_reply(attributes)
        return PhaseReply(
            Phase.RESPONSE_HEADERS,
            set_headers=self._explain_in(event),
            mode_override=None if event.end_of_stream else self._choose_mode(event),
        )

    def _choose_mode(self, event: ResponseHeaders) -> ModeOverride | None:
        """Return whether Envoy is to send the response's body; None for as it is configured."""
        if self.record.outcome is Outcome.OK and self._generates_text:
            self._watch = begin_watch(self._policy.observation, event.headers, self._start)
        if self._watch is None:
            return skip_answer(self._response_mode)
        return ask_for_answer(self._response_mode)

    @property
    def _generates_text(self) -> bool:
        return self._head is not None and self._head.endpoint.legs == 2

    def _compare_pod(self, attributes: Mapping[str, Any]) -> None:
        """Note a pod that was not chosen: Envoy falls back if it does not know the chosen one."""
        if self._policy.observation.access_log:
            return  # The log tells, also of requests without an answer.
        decision = self.record.decision
        served_by = attributes.get("upstream.address")
        if decision is not None and served_by not in (None, "", decision.decode.pod.address):
            self.record.served_by = str(served_by)

    async def _on_local_reply(self, event: ResponseHeaders) -> Reply:
        """Explain an answer that Envoy gives by itself while the request's body is to come."""
        attributes = event.attributes().get(_FILTER, {})
        if attributes.get("upstream.address"):
            log.warning(_TRAILERS_SKIPPED, extra=self._log_fields)
            raise no_body()
        self._note_response(event)
        self._note_local_reply(attributes)
        return PhaseReply(Phase.RESPONSE_HEADERS, set_headers=self._explain_in(event))

    async def _on_earlier_answer(self, event: ResponseHeaders) -> Reply:
        """Let an answer of a filter before this one (CORS, authentication) pass untouched."""
        attributes = event.attributes().get(_FILTER, {})
        if attributes.get("upstream.address"):
            raise headers_skipped()
        self._note_response(event)
        self._note_local_reply(attributes)
        mode = None if event.end_of_stream else skip_answer(self._response_mode)
        return PhaseReply(Phase.RESPONSE_HEADERS, mode_override=mode)

    async def _on_rest_of_earlier_answer(self, event: ResponseBody | ResponseTrailers) -> Reply:
        """Let an answer pass whose headers the filter has skipped."""
        self._state = State.RESPONDING
        self._note_local_reply({})
        return await self._continue(event)

    async def _on_response_body(self, event: ResponseBody) -> Reply:
        if self._watch is not None:
            try:
                self._watch.see(event.body)
            except Exception:  # What goes wrong with counting must not cut an answer.
                log.exception("an answer cannot be counted", extra=self._log_fields)
                self._watch = None
        return await self._continue(event)

    async def _continue(self, event: Event) -> Reply:
        return pass_on(event, self._response_mode)

    _STEPS: ClassVar[Mapping[tuple[State, type[Event]], _Step]] = MappingProxyType(
        {
            (State.START, RequestHeaders): _on_request_headers,
            # Where the filter skips the request's headers.
            (State.START, RequestBody): _refusing(headers_skipped),
            (State.START, RequestTrailers): _refusing(headers_skipped),
            # A filter before this one answers.
            (State.START, ResponseHeaders): _on_earlier_answer,
            (State.START, ResponseBody): _on_rest_of_earlier_answer,
            (State.START, ResponseTrailers): _on_rest_of_earlier_answer,
            (State.HEAD, RequestBody): _on_request_body,
            (State.HEAD, RequestTrailers): _refusing(no_body),
            # Envoy answers by itself, for example because the body is too large.
            (State.HEAD, ResponseHeaders): _on_local_reply,
            (State.HEAD, ResponseBody): _on_rest_of_earlier_answer,
            (State.HEAD, ResponseTrailers): _on_rest_of_earlier_answer,
            (State.FORWARDED, RequestTrailers): _continue,
            (State.FORWARDED, ResponseHeaders): _on_response_headers,
            # Where the filter skips the response's headers.
            (State.FORWARDED, ResponseBody): _continue,
            (State.FORWARDED, ResponseTrailers): _continue,
            # The rest of a request that was answered before its end.
            (State.RESPONDING, RequestBody): _continue,
            (State.RESPONDING, RequestTrailers): _continue,
            (State.RESPONDING, ResponseBody): _on_response_body,
            (State.RESPONDING, ResponseTrailers): _continue,
        }
    )
    """Which message may come in which state, and what answers it. Anything else ends the stream."""

    @property
    def _log_fields(self) -> dict[str, dict[str, str]]:
        return {"fields": {"request_id": self.record.request_id}}

    def _note_response(self, event: ResponseHeaders) -> int:
        status = event.headers.get(":status", "")
        code = int(status) if status.isdecimal() else 500
        self.record.status = code
        self.record.headers_s = time.perf_counter() - self._start
        self._state = State.RESPONDING
        return code

    def _note_local_reply(self, attributes: Mapping[str, Any]) -> None:
        self.record.outcome = Outcome.LOCAL_REPLY
        self.record.local_reply = str(attributes.get("response.code_details") or "")

    def _reject(self, rejected: RequestRejected) -> Reply | None:
        if self._state is State.RESPONDING:
            return self._give_up(rejected.message)
        record = self.record
        record.outcome = Outcome.REJECTED if rejected.status < 500 else Outcome.FAILED
        record.code, record.message = rejected.code, rejected.message
        return self._end(refuse(rejected, record))

    def _end(self, reply: ImmediateReply) -> ImmediateReply:
        self.record.status = reply.status
        self.record.headers_s = time.perf_counter() - self._start
        self._state = State.ENDED
        return reply

    def _give_up(self, reason: str) -> Reply | None:
        """End a stream on which something arrived that must not."""
        log.warning("ext_proc stream given up: %s", reason, extra=self._log_fields)
        answerable = self._state not in (State.RESPONDING, State.ENDED)
        self._state = State.ENDED
        self.record.outcome = Outcome.PROTOCOL_ERROR
        self.record.message = reason
        if not answerable:
            return None
        rejected = RequestRejected(500, "protocol_error", "the gateway's messages make no sense")
        return self._end(refuse(rejected, self.record))

    def _explain_in(self, event: ResponseHeaders) -> Headers:
        return self._policy.header_limits.keep_fitting(self._explain(), event)

    def _explain(self) -> Headers:
        policy = self._policy
        asked = self._head is not None and is_asked(self._head.headers, DECISION_DETAIL)
        return explain(
            self.record,
            expose_pods=policy.expose_pods,
            in_detail=policy.explain_decisions and asked,
        )
