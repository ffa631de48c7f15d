"""What is seen of answers: by the router, as bodies pass, or by Envoy, in its access log."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random
from typing import Any, Protocol

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.load.output_length import OutputLengths
from pdrouter.openai.usage import Usage
from pdrouter.openai.usage_scan import BodyScan, choose_scan
from pdrouter.serving.record import RequestRecord
from pdrouter.settings.choices import TokenObservation

ROUTER_NAMESPACE = "pdrouter"
"""Namespace of the dynamic metadata that the router gives Envoy for the access log."""

# To Envoy, a chunked answer that ends before its last chunk breaks the protocol.
_CUTS = frozenset(
    {"upstream_connection_termination", "upstream_remote_reset", "upstream_protocol_error"}
)


@dataclass(frozen=True, slots=True)
class RoutedRequest:
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
    """

    request_id: str
    model: str
    endpoint: str
    stream: bool
    generates: bool
    split: bool
    cached_tokens: int | None
    client_request_id: str = ""
    second: str = ""

    @classmethod
    def describe(
        cls, record: RequestRecord, *, generates: bool, second: str = ""
    ) -> "RoutedRequest":
        """Return what is to be kept of a request that has been routed."""
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
            second,
        )

    def to_metadata(self) -> Mapping[str, Mapping[str, Any]]:
        """Return it as dynamic metadata."""
        values: dict[str, Any] = {
            "request_id": self.request_id,
            "model": self.model,
            "endpoint": self.endpoint,
            "stream": self.stream,
            "generates": self.generates,
            "split": self.split,
        }
        if self.cached_tokens is not None:
            values["cached_tokens"] = self.cached_tokens
        if self.client_request_id:
            values["client_request_id"] = self.client_request_id
        if self.second:
            values["second"] = self.second
        return {ROUTER_NAMESPACE: values}

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


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """What was seen of one answer.

    Attributes:
        request: the request that it belongs to.
        served_by: address of the pod that served it; empty if it is not known.
        status: HTTP status; 0 if there was none.
        usage: tokens; None if the answer did not say.
        first_token_s: time from the request's headers to the first of a streamed answer's body, in
            seconds; None where nothing was streamed.
        stream_s: time from there to the last of the body, in seconds.
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
    flags: tuple[str, ...] = ()
    misrouted: bool = False

    @property
    def cut(self) -> str:
        """How the pod broke off what it had begun to answer; empty if it did not.

        What goes wrong before that shows in the head of the answer.
        """
        if not 0 < self.status < 400:
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
        """
        self._cache = cache
        self._lengths = lengths
        self._observer = observer
        self._on_cut = on_cut
        self._on_usage = on_usage
        self._view: ClusterView | None = None
        self._by_address: Mapping[str, Pod] = {}

    def receive(self, report: AnswerReport) -> bool:
        """Take a report; False if it is of a model that is not served."""
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
    """Watches one answer's body as it passes through the router."""

    __slots__ = ("_clock", "_first", "_last", "_scan", "_start")

    def __init__(
        self, scan: BodyScan, start: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begin.

        Args:
            scan: finds the usage.
            start: when the request came, on the clock.
            clock: gives the time in seconds.
        """
        self._scan = scan
        self._start = start
        self._clock = clock
        self._first: float | None = None
        self._last = start

    def see(self, piece: bytes) -> None:
        """Look at the next piece of the body."""
        if not piece:
            return
        self._last = self._clock()
        if self._first is None:
            self._first = self._last
        self._scan.feed(piece)

    def report(self, record: RequestRecord) -> AnswerReport:
        """Return what was seen, once the body has ended."""
        request = RoutedRequest.describe(record, generates=True)
        usage = request.correct(self._scan.finish())
        status = record.status or 0
        served_by = record.served_by or request.endpoint
        if self._first is None or not record.stream:
            return AnswerReport(request, served_by, status, usage, None, None)
        return AnswerReport(
            request,
            served_by,
            status,
            usage,
            self._first - self._start,
            self._last - self._first,
        )


def begin_watch(
    observation: TokenObservation, headers: Mapping[str, str], start: float
) -> AnswerWatch | None:
    """Begin to watch an answer; None if it is none of those that are counted here.

    Args:
        observation: who counts tokens.
        headers: the answer's headers.
        start: when the request came.
    """
    share = observation.share
    if not share or (share < 1 and random() >= share):
        return None
    scan = choose_scan(headers.get("content-type", ""), headers.get("content-encoding", ""))
    return None if scan is None else AnswerWatch(scan, start)
