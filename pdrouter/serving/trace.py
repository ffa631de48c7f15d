"""The trace of one request: ids for the spans, and what is noted for them on the way.

The ids must be there before the spans are, since engines get them in `traceparent` (W3C Trace
Context). The spans are made when the request has ended.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import getrandbits
from typing import NamedTuple, TypeAlias

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.serving.leg_outcome import Attempt

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01


class TraceParent(NamedTuple):
    """What `traceparent` says.

    Attributes:
        trace_id: the trace.
        span_id: the span that is the parent.
        sampled: whether its spans are exported.
    """

    trace_id: int
    span_id: int
    sampled: bool

    @classmethod
    def parse(cls, text: str) -> "TraceParent | None":
        """Read the header; None for nothing that the W3C allows."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more):
            return None
        parent = cls(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))
        return parent if parent.trace_id and parent.span_id else None

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"


class LegSpan(msgspec.Struct):
    """A try of a leg, or the last leg, as the span of it.

    Attributes:
        leg: the leg.
        pod: where it was sent; None where Envoy chooses.
        span_id: id of the span.
        began: when, on the clock of performance counters.
        ended: when it ended; None if it had not when the request did.
        attempt: how; None as above, and for the last leg.
    """

    leg: Leg
    pod: Pod | None
    span_id: int
    began: float
    ended: float | None = None
    attempt: Attempt | None = None


class RequestTrace:
    """The trace of one request.

    Attributes:
        own: the span of the request itself.
        parent: the span that it belongs to; None if it begins the trace.
        joined: whether the client's own `traceparent` is of this trace, and `tracestate` with it.
        legs: the tries of side legs.
        last: the last leg; None before it was sent.
    """

    __slots__ = ("joined", "last", "legs", "own", "parent")

    def __init__(self, own: TraceParent, parent: TraceParent | None, *, joined: bool) -> None:
        self.own = own
        self.parent = parent
        self.joined = joined
        self.legs: list[LegSpan] = []
        self.last: LegSpan | None = None

    @contextmanager
    def time_leg(self, leg: Leg, pod: Pod) -> Iterator[LegSpan]:
        """Note a try of a side leg, until it ends, however that is."""
        span = LegSpan(leg, pod, create_span_id(), time.perf_counter())
        self.legs.append(span)
        try:
            yield span
        finally:
            span.ended = time.perf_counter()

    def note_try(self, attempt: Attempt) -> None:
        """Note a try that has ended before its leg was sent."""
        now = time.perf_counter()
        span = LegSpan(attempt.leg, attempt.pod, create_span_id(), now - attempt.seconds, now)
        span.attempt = attempt
        self.legs.append(span)

    def send_last(self, pod: Pod | None) -> str:
        """Note that the last leg is sent, and return its `traceparent`."""
        self.last = LegSpan(Leg.DECODE, pod, create_span_id(), time.perf_counter())
        return self.write_parent(self.last)

    def write_parent(self, span: LegSpan) -> str:
        """Return the `traceparent` of a leg: the engine's spans belong to that of the leg."""
        if not self.own.sampled and self.parent is not None:
            return str(self.parent._replace(sampled=False))
        return str(self.own._replace(span_id=span.span_id))

    def replace_headers(self, headers: Mapping[str, str], span: LegSpan) -> dict[str, str]:
        """Return the headers of a leg, of this trace."""
        kept = {**headers, TRACEPARENT: self.write_parent(span)}
        if not self.joined:
            kept.pop(TRACESTATE, None)
        return kept


BeginTrace: TypeAlias = Callable[[Mapping[str, str], str], RequestTrace | None]
"""Begins the trace of a request, by the client's headers and the gateway's `traceparent`. None
where the client's headers say all that engines need: they go on as they are."""


Sample: TypeAlias = Callable[[TraceParent | None, int], bool]
"""Decides whether a request is traced, by its parent and the id of its trace."""


def begin_trace(sample: Sample, headers: Mapping[str, str], gateway: str) -> RequestTrace | None:
    """Begin the trace of a request.

    Args:
        sample: decides whether it is exported.
        headers: the client's headers.
        gateway: `traceparent` of the gateway's own span; empty where the gateway traces nothing.
    """
    of_client = TraceParent.parse(headers.get(TRACEPARENT, ""))
    parent = TraceParent.parse(gateway) or of_client
    trace_id = getrandbits(128) or 1 if parent is None else parent.trace_id
    sampled = sample(parent, trace_id)
    if not sampled and parent is not None and parent is of_client and not parent.sampled:
        return None
    joined = parent is not None and of_client is not None and of_client.trace_id == parent.trace_id
    return RequestTrace(TraceParent(trace_id, create_span_id(), sampled), parent, joined=joined)


def create_span_id() -> int:
    """Return a new id of a span: never 0, which stands for none."""
    return getrandbits(64) or 1
