"""What is seen of answers: by the router, as bodies pass, or by Envoy, in its access log."""

import logging
import time
from collections.abc import Callable, Mapping
from random import random
from typing import Annotated, Protocol

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.load.output_length import OutputLengths
from pdrouter.openai.usage import Usage
from pdrouter.openai.usage_scan import BodyScan, choose_scan
from pdrouter.serving.record import RequestRecord
from pdrouter.settings.choices import TokenObservation
from pdrouter.users.counters import Taken

log = logging.getLogger(__name__)

ROUTER_NAMESPACE = "pdrouter"
"""Namespace of the dynamic metadata that the router gives Envoy for the access log."""
REQUEST_KEY = "request"
"""What the router notes there of a request that it sends on."""
SEEN_FIRST_TOKEN: Mapping[str, Mapping[str, str]] = {ROUTER_NAMESPACE: {"first_token": "seen"}}
"""What it notes there once it has seen a stream begin: the log is not to count that once more."""
SEEN_POD: Mapping[str, Mapping[str, str]] = {ROUTER_NAMESPACE: {"pod": "seen"}}
"""What it notes there once it has seen that another pod than the chosen one has answered."""

_EVENT = b"data: {"
_Name = Annotated[str, msgspec.Meta(max_length=1024)]

# To Envoy, a chunked answer that ends before its last chunk breaks the protocol.
_CUTS = frozenset(
    {"upstream_connection_termination", "upstream_remote_reset", "upstream_protocol_error"}
)


class RoutedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Envoy keeps of a request for its access log, so that any router can read the entry.

    Attributes:
        request_id: the router's id of the request.
        model: name of the model.
        endpoint: address of the pod that was chosen; empty where Envoy chooses.
        stream: whether the answer is streamed.
        generates: whether the answer is text that was generated, whose tokens count.
        split: whether another pod has computed the prompt.
        cached_tokens: how many tokens of the prompt that pod had cached, if it says so.
        client_request_id: the id that came with the request.
        second: address of the pod that Envoy takes if it cannot connect to that; empty for none.
        user: name of who asked; empty for nobody in particular.
        reserved: the tokens that were taken of limits for it; None if no limit counts them.
        reserved_prompt: those of them that are its prompt's.
    """

    request_id: _Name
    model: _Name
    endpoint: _Name = ""
    stream: bool = False
    generates: bool = False
    split: bool = False
    cached_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    client_request_id: _Name = ""
    second: _Name = ""
    user: _Name = ""
    reserved: Taken | None = None
    reserved_prompt: int = 0

    @classmethod
    def describe(
        cls, record: RequestRecord, generates: bool, second: Pod | None = None
    ) -> "RoutedRequest":
        """Return what is to be kept of a request that has been routed.

        Args:
            record: the request.
            generates: whether its answer is text that is generated.
            second: the pod that Envoy takes if it cannot connect to the chosen one.
        """
        decision = record.decision
        split = decision is not None and not decision.whole and not record.aggregated
        return cls(
            record.request_id,
            record.model,
            "" if decision is None else decision.last.pod.address,
            record.stream,
            generates,
            split,
            record.cached_tokens,
            record.client_request_id,
            "" if second is None else second.address,
            record.user,
            record.reserved,
            record.reserved_prompt,
        )

    @classmethod
    def read(cls, text: str) -> "RoutedRequest":
        """Return the request of which this is the metadata.

        Raises:
            ValueError: it is none that a router has written.
        """
        return _REQUESTS.decode(text)

    def to_metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Return it as dynamic metadata: a text, as Envoy writes it into its log."""
        return {ROUTER_NAMESPACE: {REQUEST_KEY: msgspec.json.encode(self).decode()}}

    def correct(self, usage: Usage | None) -> Usage | None:
        """Return an answer's usage with the cached tokens of the leg that computed the prompt.

        To a decode engine, the KV that it was handed counts as cached.
        """
        if usage is None or not self.split:
            return usage
        cached = self.cached_tokens
        return Usage(
            usage.prompt_tokens,
            None if cached is None else min(cached, usage.prompt_tokens),
            usage.output_tokens,
        )


_REQUESTS = msgspec.json.Decoder(RoutedRequest)


class AnswerReport(msgspec.Struct, frozen=True):
    """What was seen of one answer.

    Attributes:
        request: the request that it belongs to.
        served_by: address of the pod that served it; empty if it is not known.
        status: HTTP status; 0 if there was none.
        usage: tokens; None if the answer did not say.
        first_token_s: time from the request's headers to the first of a streamed answer's body, in
            seconds; None where nothing was streamed.
        stream_s: time from there to the last of the body, in seconds.
        counted: whether the answer was looked at for its tokens.
        events: events of a streamed answer, each of which has a token or more, but for a few; 0
            where they are not counted.
        flags: what went wrong in Envoy's eyes, in its words.
        misrouted: whether this report tells that another pod than the chosen one has answered;
            False where the request's record does.
    """

    request: RoutedRequest
    served_by: str
    status: int
    usage: Usage | None
    first_token_s: float | None
    stream_s: float | None
    counted: bool = True
    events: int = 0
    flags: tuple[str, ...] = ()
    misrouted: bool = False

    @property
    def cut(self) -> str:
        """How the pod broke off what it had begun to answer; empty if it did not.

        What goes wrong before that shows in the head of the answer.
        """
        if not self.flags or not 0 < self.status < 400:
            return ""
        return next((flag for flag in self.flags if flag in _CUTS), "")

    @property
    def inter_token_s(self) -> float | None:
        """Mean time between two tokens, in seconds; None where there are not two."""
        tokens = None if self.usage is None else self.usage.output_tokens
        if self.stream_s is None or tokens is None or tokens < 2:
            return None
        return self.stream_s / (tokens - 1)


class AnswerObserver(Protocol):
    """Is told of answers. Must not raise."""

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        """An answer of a served model has ended, on this pod if it is a known one."""


class AnswerReports:
    """Where all reports go, whoever made them."""

    def __init__(
        self,
        cache: PodCache,
        lengths: OutputLengths,
        observer: AnswerObserver,
        on_cut: Callable[[Pod, str], None],
        *,
        settle: Callable[["AnswerReport"], None],
        on_usage: Callable[[str, Usage], None] | None = None,
    ) -> None:
        """Set up.

        Args:
            cache: the pods.
            lengths: learns the length of answers.
            observer: is told of answers.
            on_cut: is told of pods that break answers off, and how.
            on_usage: is told of the router's id of a request, and what its answer has used; None
                for nobody.
            settle: counts the tokens of answers against limits.
        """
        self._cache = cache
        self._lengths = lengths
        self._observer = observer
        self._on_cut = on_cut
        self._on_usage = on_usage
        self._settle = settle
        self._view: ClusterView | None = None
        self._by_address: Mapping[str, Pod] = {}

    def receive(self, report: AnswerReport) -> bool:
        """Take a report; False if it is of a model that is not served."""
        self._settle(report)
        pods = self._cache.view.models.get(report.request.model)
        if pods is None:
            return False
        if report.usage is not None and report.usage.output_tokens and report.status < 400:
            self._lengths.observe(pods.model, report.usage.output_tokens)
        if report.usage is not None and self._on_usage is not None:
            self._on_usage(report.request.request_id, report.usage)
        pod = self._find_pod(report.served_by)
        if pod is not None and report.cut:
            self._on_cut(pod, report.cut)
        self._observer.answer_reported(report, pod)
        return True

    def _find_pod(self, address: str) -> Pod | None:
        view = self._cache.view
        if view is not self._view:
            self._view = view
            # Of two that have been given the same address, the one that is ready has it.
            pods = sorted(view.pods, key=lambda pod: pod.ready)
            self._by_address = {pod.address: pod for pod in pods if not pod.refused}
        return self._by_address.get(address)


class AnswerWatch:
    """Watches one answer's body as it passes through the router, if it does.

    Attributes:
        counts: whether it looks for the answer's tokens; if not, it only notes the time.
    """

    __slots__ = ("_clock", "_events", "_first", "_last", "_scan", "_start", "counts")

    def __init__(
        self, scan: BodyScan | None, start: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begin.

        Args:
            scan: finds the usage; None if nobody asks for it.
            start: when the request came, on the clock.
            clock: gives the time in seconds.
        """
        self._scan = scan
        self.counts = scan is not None
        self._start = start
        self._clock = clock
        self._events = 0
        self._first: float | None = None
        self._last = start

    def see(self, piece: bytes, record: RequestRecord) -> bool:
        """Look at the next piece of the body; return whether a stream has begun with it."""
        if not piece:
            return False
        self._last = self._clock()
        begins = self._first is None
        if begins:
            self._first = self._last
            if record.stream:
                record.first_token_s = self._first - self._start
        if self._scan is not None:
            self._events += piece.count(_EVENT) if record.stream else 0
            try:
                self._scan.feed(piece)
            except Exception:  # What goes wrong with counting must not cut an answer.
                log.exception("an answer cannot be counted", extra=record.log_fields)
                self._scan, self.counts = None, False
        return begins and record.stream

    def report(self, record: RequestRecord) -> AnswerReport | None:
        """Return what was seen, once the body has ended; None if that is nothing."""
        streamed = self._first is not None and record.stream
        if not (self.counts or streamed):
            return None
        request = RoutedRequest.describe(record, generates=True)
        return AnswerReport(
            request,
            record.served_by or request.endpoint,
            record.status or 0,
            request.correct(None if self._scan is None else self._scan.finish()),
            record.first_token_s if streamed else None,
            None if self._first is None or not streamed else self._last - self._first,
            counted=self.counts,
            events=self._events,
        )


def begin_watch(
    observation: TokenObservation, headers: Mapping[str, str], record: RequestRecord
) -> AnswerWatch:
    """Begin to watch an answer, and to count its tokens if it is one of those.

    Args:
        observation: who counts tokens.
        headers: the answer's headers.
        record: says whether its tokens count against a limit, so that they must be known: if Envoy
            does not report them, the router looks.
    """
    share = 1.0 if record.reserved is not None and not observation.counts else observation.share
    scan = None
    if share and (share == 1 or random() < share):
        scan = choose_scan(headers.get("content-type", ""), headers.get("content-encoding", ""))
    return AnswerWatch(scan, record.began)
