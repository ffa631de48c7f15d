"""The life of one HTTP request: events from Envoy in, replies out, whatever carries them.

Envoy opens a stream for each request and sends an event for each phase that the request reaches.
The table below is the machine: for each state and event it names the phase that answers, and the
state that the request is in then. A pair that is not there is nothing that Envoy may do, and ends
the stream. Three rules hold for all of them:

* A phase that gives an `ImmediateReply`, or raises, ends the request: the client gets that answer.
* Once the response's headers have been let go, nothing can be answered any more. What fails then
  cuts the stream, and with it the client's answer.
* Tasks of the call may fail at any time. Then the same holds, without an event that asks: Envoy
  takes an unasked `ImmediateReply` until it has the reply to the response's headers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum, auto
from typing import Any, NamedTuple, TypeAlias

from pdrouter.extproc.codec import MessageInvalid, decode, encode
from pdrouter.extproc.front_door import no_body
from pdrouter.extproc.immediate import pass_refusal, refuse
from pdrouter.extproc.messages import (
    Event,
    ImmediateReply,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from pdrouter.extproc.modes import headers_skipped
from pdrouter.extproc.phases import Phases
from pdrouter.extproc.request_ids import create_request_id
from pdrouter.extproc.shared import Shared
from pdrouter.openai.errors import RequestRejected
from pdrouter.serving.call import Call
from pdrouter.serving.leg_outcome import LegFailed, LegRefused
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.refusals import describe_failure

log = logging.getLogger(__name__)


class State(StrEnum):
    """How far a request has come."""

    START = auto()
    """Nothing has arrived."""
    HEAD = auto()
    """The request's headers have been answered; its body is to come."""
    SENT = auto()
    """The request goes to a pod by its headers alone; it may have a body all the same."""
    FORWARDED = auto()
    """The request goes to a pod; its response is to come."""
    RESPONDING = auto()
    """The response's headers have been answered."""


# Until Python 3.12, to look up a member of an enumeration costs as much as two calls.
_START = State.START

_Answer: TypeAlias = Callable[[Phases, Any], Awaitable[Reply | None]]


class _Step(NamedTuple):
    """What is done with an event.

    Attributes:
        answer: gives the reply; None where there is none.
        next: the state of the request then.
    """

    answer: _Answer
    next: State


def _refuse(create_error: Callable[[], RequestRejected]) -> _Step:
    async def answer(phases: Phases, event: Event) -> Reply:
        del phases, event
        raise create_error()

    return _Step(answer, State.START)


STEPS: Mapping[State, Mapping[type[Event], _Step]] = {
    State.START: {
        RequestHeaders: _Step(Phases.on_request_headers, State.HEAD),
        # Where the filter skips the request's headers.
        RequestBody: _refuse(headers_skipped),
        RequestTrailers: _refuse(headers_skipped),
        # A filter before this one answers.
        ResponseHeaders: _Step(Phases.on_earlier_answer, State.RESPONDING),
        ResponseBody: _Step(Phases.on_rest_of_earlier_answer, State.RESPONDING),
        ResponseTrailers: _Step(Phases.on_rest_of_earlier_answer, State.RESPONDING),
    },
    State.HEAD: {
        RequestBody: _Step(Phases.on_request_body, State.FORWARDED),
        RequestTrailers: _refuse(no_body),
        # Envoy answers by itself, for example because the body is too large.
        ResponseHeaders: _Step(Phases.on_local_reply, State.RESPONDING),
        ResponseBody: _Step(Phases.on_rest_of_earlier_answer, State.RESPONDING),
        ResponseTrailers: _Step(Phases.on_rest_of_earlier_answer, State.RESPONDING),
    },
    State.SENT: {
        RequestBody: _Step(Phases.pass_on, State.FORWARDED),
        RequestTrailers: _Step(Phases.pass_on, State.FORWARDED),
        ResponseHeaders: _Step(Phases.on_response_headers, State.RESPONDING),
        ResponseBody: _Step(Phases.pass_on, State.FORWARDED),
        ResponseTrailers: _Step(Phases.pass_on, State.FORWARDED),
    },
    State.FORWARDED: {
        RequestTrailers: _Step(Phases.pass_on, State.FORWARDED),
        ResponseHeaders: _Step(Phases.on_response_headers, State.RESPONDING),
        # Where the filter skips the response's headers.
        ResponseBody: _Step(Phases.pass_on, State.FORWARDED),
        ResponseTrailers: _Step(Phases.pass_on, State.FORWARDED),
    },
    State.RESPONDING: {
        # The rest of a request that was answered before its end.
        RequestBody: _Step(Phases.pass_on, State.RESPONDING),
        RequestTrailers: _Step(Phases.pass_on, State.RESPONDING),
        ResponseBody: _Step(Phases.on_response_body, State.RESPONDING),
        ResponseTrailers: _Step(Phases.pass_on, State.RESPONDING),
    },
}
"""Which event may come in which state, what answers it, and the state then."""


class Exchange:
    """One request. Feed it with events, in order; close it when the stream has ended.

    Attributes:
        call: what the stream owns.
        record: what is known of the request so far.
        cut: whether the stream is to be reset, since it is too late for an answer.
        ended: whether there is nothing more to say: the router has answered the request itself, or
            has given it up, and the stream is to be ended.
    """

    __slots__ = (
        "_interrupt",
        "_phases",
        "_send",
        "_shared",
        "_state",
        "call",
        "cut",
        "ended",
        "record",
    )

    def __init__(
        self,
        shared: Shared,
        send: Callable[[bytes], Awaitable[object]],
        interrupt: Callable[[], object],
    ) -> None:
        """Begin with the stream.

        Args:
            shared: what all exchanges work with.
            send: sends a message on the stream.
            interrupt: ends the reading of messages.
        """
        self._shared = shared
        self._send = send
        self._interrupt = interrupt
        self._state = _START
        self.cut = False
        self.ended = False
        self.record = RequestRecord(create_request_id())
        self.call = Call(self.record, self._end_unasked, shared.dispatcher.drains)
        self._phases = Phases(self.call, shared)
        shared.observer.request_started(self.record)

    def follow(self, read_gateway_trace: Callable[[], str]) -> None:
        """Take what gives the `traceparent` of the gateway's own span, should anybody ask."""
        self._phases.read_gateway_trace = read_gateway_trace

    async def receive(self, data: bytes) -> None:
        """Take a message of the ext_proc stream, and send what answers it."""
        try:
            event = decode(data)
        except MessageInvalid as invalid:
            reply = self._give_up(f"a message cannot be read: {invalid.reason}")
        else:
            # The message has a copy of the body, which would stay for as long as prefill takes.
            del data
            reply = await self.handle(event)
        if reply is not None:
            await self._say(reply)
        call = self.call
        if self.ended and call.turn is not None:
            # A task that has failed meanwhile is about to say so: it must not be stopped before.
            async with call.turn:
                pass
        # The request may go on for minutes, without its body.
        if call.body is not None:
            call.release_body()

    async def admit(self, size: int) -> bool:
        """Return whether there is room for a message of so many bytes, which is to come.

        Room is kept for the request's; if there is none, the client is told.
        """
        if self.ended or self._state not in (State.START, State.HEAD, State.SENT):
            return True
        try:
            self._phases.expect_body(size)
        except RequestRejected as rejected:
            reply = self._fail(rejected)
            if reply is not None:
                await self._say(reply)
            return False
        return True

    async def handle(self, event: Event) -> Reply | None:
        """Return the reply to an event; None for none. Raises nothing but cancellation."""
        step = None if self.ended else STEPS[self._state].get(type(event))
        if step is None or event.observability_mode:
            return self._stop(event)
        record, phases = self.record, self._phases
        if event.protocol_config is not None:
            phases.response_mode = event.protocol_config.response_body_mode
        steps = record.steps
        entered = time.perf_counter() - steps.waited_s
        try:
            reply = await step.answer(phases, event)
        except Exception as error:
            if self.ended:  # By a task, which has said so: a second answer would be one too many.
                log.warning("request failed again", exc_info=error, extra=record.log_fields)
                return None
            return self._fail(error)
        finally:
            record.overhead_s += time.perf_counter() - steps.waited_s - entered
        if self.ended:  # By a task that has failed meanwhile.
            return None
        if isinstance(reply, ImmediateReply):
            return self._end(reply)
        # What needs no body is on its way with its headers.
        sent = record.forwarded and self._state is _START
        self._state = State.SENT if sent else step.next
        return reply

    def _stop(self, event: Event) -> Reply | None:
        """Answer an event that no phase answers."""
        if self.ended:
            return None
        if event.observability_mode:
            self._give_up("the filter is in observability mode: it ignores all replies")
            return None
        return self._give_up(f"{event.phase} arrived in state {self._state.name}")

    def _say(self, reply: Reply) -> Awaitable[object]:
        data, turn = encode(reply), self.call.turn
        return self._send(data) if turn is None else self._send_in_turn(data, turn)

    async def _send_in_turn(self, data: bytes, turn: asyncio.Lock) -> None:
        """Send a reply where a task that fails may speak at the same time."""
        async with turn:
            await self._send(data)

    async def _end_unasked(self, error: Exception) -> None:
        """End the request since a task of its call has failed."""
        if self.ended:
            return
        reply = self._fail(error)
        if reply is not None:
            await self._say(reply)
        else:
            self.cut = True
            self._interrupt()

    def close(self) -> None:
        """Release all that is counted for the request. Call it once, however the stream ended."""
        self.call.close()
        self.ended = True
        self.record.total_s = self.record.elapsed_s
        try:
            self._phases.close()
        finally:  # Who counts open requests hears of the end in any case.
            self._shared.observer.request_finished(self.record)

    def _fail(self, error: Exception) -> Reply | None:
        """Return the answer to a request that has failed; None if it is too late for one."""
        record = self.record
        match error:
            case LegRefused():
                record.outcome = Outcome.ENGINE_ERROR
                return self._end(pass_refusal(error.answer, self._phases.explain()))
            case LegFailed():
                expose_pods = self._shared.policy.expose_pods
                rejected = describe_failure(error, expose_pods=expose_pods)
            case RequestRejected():
                rejected = error
            case _:
                log.error("request failed", exc_info=error, extra=record.log_fields)
                rejected = RequestRejected(500, "internal_error", "internal error")
        record.outcome = Outcome.REJECTED if rejected.status < 500 else Outcome.FAILED
        record.code, record.message = rejected.code, rejected.message
        if self._state is State.RESPONDING:
            log.warning("an answer is cut off: %s", rejected.message, extra=record.log_fields)
            self.ended = True
            return None
        return self._end(refuse(rejected, record))

    def _end(self, reply: ImmediateReply) -> ImmediateReply:
        self.record.status = reply.status
        self.record.headers_s = self.record.elapsed_s
        self.ended = True
        return reply

    def _give_up(self, reason: str) -> Reply | None:
        """End a stream on which something arrived that must not."""
        record = self.record
        log.warning("ext_proc stream given up: %s", reason, extra=record.log_fields)
        answerable = not self.ended and self._state is not State.RESPONDING
        self.ended = True
        record.outcome = Outcome.PROTOCOL_ERROR
        record.message = reason
        if not answerable:
            return None
        rejected = RequestRejected(500, "protocol_error", "the gateway's messages make no sense")
        return self._end(refuse(rejected, record))
