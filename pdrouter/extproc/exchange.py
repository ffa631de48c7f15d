"""The life of one HTTP request: an event from Envoy in, a reply out, whatever carries them."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from random import getrandbits, random
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from pdrouter.cluster.view import PodCache
from pdrouter.extproc import own_answers
from pdrouter.extproc.answers import (
    UNOBSERVED,
    AnswerReports,
    AnswerWatch,
    RoutedRequest,
    TokenObservation,
)
from pdrouter.extproc.codec import MessageInvalid, decode, encode
from pdrouter.extproc.dispatch import Dispatcher, RequestHead
from pdrouter.extproc.explanation import explain
from pdrouter.extproc.forwarding import forward
from pdrouter.extproc.front_door import admit, authenticate
from pdrouter.extproc.headers import DECISION_DETAIL, REQUEST_ID, STRIPPED_HEADERS
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
from pdrouter.extproc.record import Observer, Outcome, RequestRecord
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.paths import split_path
from pdrouter.openai.usage_scan import choose_scan
from pdrouter.prefill.client import EngineAnswer
from pdrouter.prefill.leg import PrefillRefused

log = logging.getLogger(__name__)

_JSON = ("content-type", "application/json")
_FILTER = "envoy.filters.http.ext_proc"
_CLIENT_ID_LENGTH = 128
_STRIP = PhaseReply(Phase.REQUEST_HEADERS, remove_headers=STRIPPED_HEADERS)
_STRIP_BYTES = encode(_STRIP)
_NO_RESPONSE_BODY = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.NONE)
_RESPONSE_BODY = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.STREAMED)
_KEPT_HEADERS = ("content-type", "retry-after", "www-authenticate")


_Step: TypeAlias = Callable[["Exchange", Any], Awaitable[Reply]]


class State(Enum):
    """How far a request has come."""

    START = auto()
    """Nothing has arrived."""
    HEAD = auto()
    """The request's headers have been answered; its body is to come."""
    FORWARDED = auto()
    """The request goes to a pod; its response is to come."""
    RESPONDING = auto()
    """The response's headers have been answered."""
    ENDED = auto()
    """The router has answered the request itself, or has given it up."""


@dataclass(frozen=True, slots=True)
class ExchangePolicy:
    """What an operator may decide about the answers.

    Attributes:
        expose_pods: whether clients are told names and addresses of pods.
        explain_decisions: whether a client may ask for a decision in detail.
        bearer_token: the key that clients must present; None to let everybody in.
        max_body_bytes: size of the largest body; larger ones are refused.
        observation: who counts the tokens of answers.
    """

    expose_pods: bool
    explain_decisions: bool
    bearer_token: str | None
    max_body_bytes: int
    observation: TokenObservation = UNOBSERVED


class Exchange:
    """One request. Feed it with events, in order; close it when the stream has ended.

    Attributes:
        record: what is known of the request so far.
    """

    __slots__ = (
        "_answers",
        "_cache",
        "_dispatcher",
        "_head",
        "_observer",
        "_policy",
        "_response_mode",
        "_scopes",
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
    ) -> None:
        self._answers = answers
        self._dispatcher = dispatcher
        self._cache = cache
        self._observer = observer
        self._policy = policy
        self._state = State.START
        self._start = time.perf_counter()
        self._scopes = ExitStack()
        self._head: RequestHead | None = None
        self._response_mode: BodyMode | None = None
        self._watch: AnswerWatch | None = None
        self.record = RequestRecord(_create_request_id())
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
        if reply is _STRIP:
            return _STRIP_BYTES
        return None if reply is None else encode(reply)

    async def handle(self, event: Event) -> Reply | None:
        """Answer an event; None if there is no answer to it. Raises nothing but cancellation."""
        entered = time.perf_counter()
        waited = self.record.prefill_s
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
            return self._pass_refusal(refused.answer)
        except Exception:
            log.exception("request failed", extra=self._log_fields)
            return self._reject(RequestRejected(500, "internal_error", "internal error"))
        finally:
            spent = time.perf_counter() - entered
            self.record.overhead_s += spent - (self.record.prefill_s - waited)

    def close(self) -> None:
        """Release all that is counted for the request. Call it once, however the stream ended."""
        self._scopes.close()
        self._state = State.ENDED
        record = self.record
        record.total_s = time.perf_counter() - self._start
        if record.outcome is None:
            record.outcome = Outcome.CLIENT_LEFT
        if self._watch is not None:
            self._answers.receive(self._watch.report(record))
        self._observer.request_finished(record)

    async def _on_request_headers(self, event: RequestHeaders) -> Reply:
        headers, record = event.headers, self.record
        record.path, _ = split_path(headers.get(":path", ""))
        record.method = headers.get(":method", "")
        record.client_request_id = headers.get(REQUEST_ID, "")[:_CLIENT_ID_LENGTH]
        authenticate(headers, self._policy.bearer_token)
        body = own_answers.answer(record.path, record.method, self._cache.view)
        if body is not None:
            record.outcome = Outcome.ANSWERED
            return self._answer(200, (_JSON, (REQUEST_ID, record.request_id)), body, "models")
        self._head = admit(event)
        if event.protocol_config is not None:
            self._response_mode = event.protocol_config.response_body_mode
        self._state = State.HEAD
        return _STRIP

    async def _on_request_body(self, event: RequestBody) -> Reply:
        if self._head is None:
            raise RuntimeError("a body without headers passed the table")
        limit = self._policy.max_body_bytes
        if len(event.body) > limit:
            message = f"the request body is larger than the limit of {limit} bytes"
            raise RequestRejected(413, "request_too_large", message)
        dispatched = await self._dispatcher.dispatch(
            self._head, event.body, self.record, self._scopes
        )
        self._state = State.FORWARDED
        metadata = None
        if self._policy.observation.access_log:
            request = RoutedRequest.describe(self.record, generates=self._generates_text)
            metadata = request.to_metadata()
        return forward(dispatched, event.body, self.record.strategy, metadata)

    async def _on_response_headers(self, event: ResponseHeaders) -> Reply:
        status = self._note_response(event)
        self.record.outcome = Outcome.OK if status < 400 else Outcome.ENGINE_ERROR
        self._compare_pod(event)
        return PhaseReply(
            Phase.RESPONSE_HEADERS,
            set_headers=self._explain(),
            mode_override=None if event.end_of_stream else self._choose_mode(event),
        )

    def _choose_mode(self, event: ResponseHeaders) -> ModeOverride | None:
        """Return whether Envoy is to send the response's body; None for as it is configured."""
        if self._is_to_watch():
            headers = event.headers
            scan = choose_scan(headers.get("content-type", ""), headers.get("content-encoding", ""))
            if scan is not None:
                self._watch = AnswerWatch(scan, self._start)
                return None if self._response_mode is BodyMode.STREAMED else _RESPONSE_BODY
        # A response body that passes through the router costs a message per token.
        return None if self._response_mode in (None, BodyMode.NONE) else _NO_RESPONSE_BODY

    def _is_to_watch(self) -> bool:
        share = self._policy.observation.share
        if not share or self.record.outcome is not Outcome.OK:
            return False
        return self._generates_text and (share == 1 or random() < share)

    @property
    def _generates_text(self) -> bool:
        return self._head is not None and self._head.endpoint.legs == 2

    def _compare_pod(self, event: ResponseHeaders) -> None:
        """Note a pod that was not chosen: Envoy falls back if it does not know the chosen one."""
        if self._policy.observation.access_log:
            return  # The log tells, also of requests without an answer.
        decision = self.record.decision
        served_by = event.attributes().get(_FILTER, {}).get("upstream.address")
        if decision is not None and served_by not in (None, decision.decode.pod.address):
            self.record.served_by = str(served_by)

    async def _on_local_reply(self, event: ResponseHeaders) -> Reply:
        self._note_response(event)
        self.record.outcome = Outcome.LOCAL_REPLY
        return PhaseReply(Phase.RESPONSE_HEADERS, set_headers=self._explain())

    async def _on_response_body(self, event: ResponseBody) -> Reply:
        if self._watch is not None:
            try:
                self._watch.see(event.body)
            except Exception:  # What goes wrong with counting must not cut an answer.
                log.exception("an answer cannot be counted", extra=self._log_fields)
                self._watch = None
        return PhaseReply(event.phase)

    async def _continue(self, event: Event) -> Reply:
        return PhaseReply(event.phase)

    _STEPS: ClassVar[Mapping[tuple[State, type[Event]], _Step]] = MappingProxyType(
        {
            (State.START, RequestHeaders): _on_request_headers,
            (State.HEAD, RequestBody): _on_request_body,
            # Envoy answers by itself, for example because the body is too large.
            (State.HEAD, ResponseHeaders): _on_local_reply,
            (State.FORWARDED, RequestTrailers): _continue,
            (State.FORWARDED, ResponseHeaders): _on_response_headers,
            # Where the filter skips the response's headers.
            (State.FORWARDED, ResponseBody): _continue,
            (State.FORWARDED, ResponseTrailers): _continue,
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

    def _reject(self, rejected: RequestRejected) -> Reply | None:
        if self._state is State.RESPONDING:
            return self._give_up(rejected.message)
        record = self.record
        record.outcome = Outcome.REJECTED if rejected.status < 500 else Outcome.FAILED
        record.code, record.message = rejected.code, rejected.message
        headers = (_JSON, *rejected.headers, (REQUEST_ID, record.request_id))
        return self._answer(rejected.status, headers, rejected.body(), rejected.code)

    def _pass_refusal(self, answer: EngineAnswer) -> ImmediateReply:
        """Give the client the prefill engine's own error."""
        self.record.outcome = Outcome.ENGINE_ERROR
        kept = [(name, answer.headers[name]) for name in _KEPT_HEADERS if name in answer.headers]
        return self._answer(
            answer.status, (*kept, *self._explain()), answer.body, "prefill_refused"
        )

    def _answer(self, status: int, headers: Headers, body: bytes, details: str) -> ImmediateReply:
        self.record.status = status
        self.record.headers_s = time.perf_counter() - self._start
        self._state = State.ENDED
        return ImmediateReply(status, headers, body, f"pdrouter_{details}")

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
        headers = (_JSON, (REQUEST_ID, self.record.request_id))
        return self._answer(500, headers, rejected.body(), rejected.code)

    def _explain(self) -> Headers:
        policy = self._policy
        asked = self._head is not None and DECISION_DETAIL in self._head.headers
        return explain(
            self.record,
            expose_pods=policy.expose_pods,
            in_detail=policy.explain_decisions and asked,
        )


def _create_request_id() -> str:
    # Unique, but no secret: asking the kernel for randomness would give up Python's lock, and to
    # get that back takes the longer the busier the process is. A process that is forked off gets
    # a seed of its own.
    return str(uuid.UUID(int=getrandbits(128), version=4))
