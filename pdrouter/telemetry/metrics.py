"""The Prometheus metrics, declared once."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter import __version__
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.scrape_stats import ScrapeStats
from pdrouter.serving.tokenizers import TokenizerStats
from pdrouter.telemetry.capacity_gauges import CapacityGauges
from pdrouter.telemetry.leg_metrics import SECONDS, PrefillMetrics, SideLegMetrics
from pdrouter.telemetry.live_gauges import LiveGauges
from pdrouter.telemetry.logs import count_dropped_lines
from pdrouter.telemetry.model_series import SeriesRegistry
from pdrouter.telemetry.page import render_page
from pdrouter.telemetry.redis_metrics import RedisMetrics
from pdrouter.telemetry.reloads import declare_reloads
from pdrouter.telemetry.tallies import Derived, HistogramTally, Tally
from pdrouter.telemetry.tokens import TokenMetrics
from pdrouter.telemetry.turn_metrics import TurnMetrics
from pdrouter.telemetry.user_metrics import UserMetrics
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.redis.stats import LinkStats

_CODE_SECONDS = (
    *(0.00005, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.002, 0.005, 0.01, 0.05, 0.25),
)
_LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class RequestMetrics:
    """Ends, decisions and times of requests.

    Attributes:
        ended: requests that have ended: each is counted once, and shown by how it ended and by what
            was decided.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Tally("", "", ("model", "outcome", "status", "decision", "reason"))
        Derived(
            "pdrouter_requests",
            "Requests that have ended, by how: ok, engine-error, answered, rejected, failed, "
            "local-reply, client-left, protocol-error.",
            ("model", "outcome", "status"),
            self.ended,
            lambda model, outcome, status, *_: (model, outcome, status),
            registry=registry,
        )
        Derived(
            "pdrouter_decisions",
            "Routed requests by decision (disaggregated, aggregated) and, if aggregated, why.",
            ("model", "decision", "reason"),
            self.ended,
            lambda model, _, __, decision, reason: (model, decision, reason) if decision else None,
            registry=registry,
        )
        self.misrouted = Counter(
            "pdrouter_misrouted",
            "Requests that Envoy sent to another pod than the chosen one.",
            ("model",),
            registry=registry,
        )
        self.moved = Counter(
            "pdrouter_second_pod",
            "Requests that Envoy sent to the second pod, as it did not reach the first.",
            ("model",),
            registry=registry,
        )
        self.sessions = Tally(
            "pdrouter_session_requests",
            "Requests whose session was looked at, by what became of it: kept, overloaded, away, "
            "none.",
            ("model", "outcome"),
            registry=registry,
        )
        self.deadline_refusals = Counter(
            "pdrouter_deadline_refusals",
            "Requests refused since no pod would have had the first token when it was due.",
            ("model",),
            registry=registry,
        )
        self._declare_times(registry)

    def _declare_times(self, registry: CollectorRegistry) -> None:
        self.headers_seconds = HistogramTally(
            "pdrouter_response_headers_seconds",
            "From the request's headers to the response's headers.",
            SECONDS,
            ("model",),
            registry=registry,
        )
        self.seconds = HistogramTally(
            "pdrouter_request_seconds",
            "From the request's headers to the end of the response.",
            SECONDS,
            ("model",),
            registry=registry,
        )
        self.routing_seconds = HistogramTally(
            "pdrouter_routing_seconds",
            "Time to choose the pods.",
            _CODE_SECONDS,
            registry=registry,
        )
        self.overhead_seconds = HistogramTally(
            "pdrouter_overhead_seconds",
            "Time that a request spends in the router's own code, without waiting for others.",
            _CODE_SECONDS,
            registry=registry,
        )


class EventLoopMetrics:
    """How late the event loop comes to what is due."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag_seconds = HistogramTally(
            "pdrouter_event_loop_lag_seconds",
            "How late a timer of the event loop fires; looked at 50 times a second.",
            _LAG_SECONDS,
            registry=registry,
        )
        self.stall_seconds = HistogramTally(
            "pdrouter_event_loop_stall_seconds",
            "What of the lag the process was computing itself, instead of waiting for CPU.",
            _LAG_SECONDS,
            registry=registry,
        )


class Metrics:
    """All metrics of the process, in a registry of their own.

    A `model` label is a served model's name, or empty: clients cannot add series.

    Attributes:
        requests: metrics of requests.
        encode: metrics of encode legs.
        prefill: metrics of prefill legs.
        tokens: metrics of answers whose tokens are counted.
        turns: metrics of the turns that users take.
        users: metrics of users, and of their limits.
        event_loop: metrics of the event loop.
        endpoints_reloads: times that the endpoints file was read.
    """

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        in_flight: Callable[[], int],
        watches: Callable[[], Mapping[str, ReflectorStats]],
        *,
        scrapes: ScrapeStats | None = None,
        tokenizers: TokenizerStats | None = None,
        log_entries: Mapping[str, int] = MappingProxyType({}),
        failures: FailureMemory | None = None,
        redis: LinkStats | None = None,
        keys: KeysFile | None = None,
        wanted: PodsWanted | None = None,
    ) -> None:
        """Declare the metrics.

        Args:
            cache: the pods, for the gauges per pod.
            ledger: work in flight, for the gauges per pod.
            in_flight: counts the open ext_proc streams.
            watches: gives what the reflectors of Kubernetes objects have met.
            scrapes: what scraping the engines' metrics has met; None where they are not scraped.
            tokenizers: what counting prompts' tokens has met; None where they are not counted.
            log_entries: entries of Envoy's access log by what became of them.
            failures: which pods have failed of late, for the gauges per pod.
            redis: what has become of calls to Redis; None where no server is named.
            keys: the users of the file; None for none.
            wanted: tells how many pods the load wants; None where engines say nothing.
        """
        # A time of creation beside every counter would double the page.
        disable_created_metrics()
        registry = SeriesRegistry(cache)
        self._registry = registry
        self.requests = RequestMetrics(registry)
        self.encode = SideLegMetrics("encode", registry)
        self.prefill = PrefillMetrics(registry)
        self.tokens = TokenMetrics(registry, cache, log_entries)
        self.turns = TurnMetrics(registry)
        self.users = UserMetrics(registry, keys or KeysFile())
        self.event_loop = EventLoopMetrics(registry)
        self.endpoints_reloads = declare_reloads(
            "pdrouter_endpoints_reloads", "endpoints file", registry
        )
        Gauge("pdrouter_info", "Version of the router.", ("version",), registry=registry).labels(
            __version__
        ).set(1)
        self.add(LiveGauges(cache, ledger, in_flight, failures or FailureMemory()))
        self.add(CapacityGauges(cache, ledger, wanted or PodsWanted(ledger, {})))
        self.add(_WatchMetrics(watches))
        self.add(_ScrapeMetrics(scrapes or ScrapeStats()))
        self.add(_TokenizerMetrics(tokenizers or TokenizerStats()))
        self.add(RedisMetrics(redis))
        self.add(_LogMetrics())

    def add(self, collector: Collector) -> None:
        """Show what another collector has on the same page."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """Return the metrics page in Prometheus' text format; in a thread, as it takes its time."""
        self._registry.forget_models({model for model, *_ in list(self.requests.ended.counts)})
        return render_page(self._registry.collect())


class _WatchMetrics(Collector):
    """What the reflectors of Kubernetes objects have met; absent without Kubernetes."""

    def __init__(self, watches: Callable[[], Mapping[str, ReflectorStats]]) -> None:
        self._watches = watches

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        names = ("watch",)
        staleness = GaugeMetricFamily(
            "pdrouter_kubernetes_staleness_seconds",
            "Time since the API server's last sign of life.",
            None,
            names,
        )
        synced = GaugeMetricFamily(
            "pdrouter_kubernetes_synced", "1 once everything has been listed.", None, names
        )
        lists = CounterMetricFamily("pdrouter_kubernetes_lists", "Complete lists.", None, names)
        begun = CounterMetricFamily(
            "pdrouter_kubernetes_watches", "Watches that were begun.", None, names
        )
        events = CounterMetricFamily(
            "pdrouter_kubernetes_events", "Events by type.", None, ("watch", "type")
        )
        restarts = CounterMetricFamily(
            "pdrouter_kubernetes_restarts",
            "Lists and watches that ended, by cause.",
            None,
            ("watch", "cause"),
        )
        now = time.monotonic()
        for watch, stats in self._watches().items():
            if stats.contact is not None:
                staleness.add_metric((watch,), now - stats.contact)
            synced.add_metric((watch,), float(stats.synced))
            lists.add_metric((watch,), stats.lists)
            begun.add_metric((watch,), stats.watches)
            for kind, count in stats.events.copy().items():
                events.add_metric((watch, kind), count)
            for cause, count in stats.restarts.copy().items():
                restarts.add_metric((watch, cause), count)
        yield from (staleness, synced, lists, begun, events, restarts)


class _TokenizerMetrics(Collector):
    """What counting prompts' tokens has met."""

    def __init__(self, stats: TokenizerStats) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        yield CounterMetricFamily(
            "pdrouter_tokenizer_prompts",
            "Prompts whose tokens a tokenizer was to count.",
            self._stats.prompts,
        )
        yield CounterMetricFamily(
            "pdrouter_tokenizer_timeouts",
            "Prompts whose length was estimated, because counting took too long.",
            self._stats.late,
        )


class _ScrapeMetrics(Collector):
    """What scraping the engines' metrics has met."""

    def __init__(self, stats: ScrapeStats) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        stats = self._stats
        yield CounterMetricFamily(
            "pdrouter_scrapes", "Scrapes of engines' metrics, failed ones too.", stats.scrapes
        )
        yield CounterMetricFamily(
            "pdrouter_scrape_seconds", "Time that the scrapes took, all together.", stats.seconds
        )
        failures = CounterMetricFamily(
            "pdrouter_scrape_failures",
            "Scrapes that gave no sample, by cause: connect, transport, timeout, status, "
            "too-large, no-metrics.",
            None,
            ("cause",),
        )
        for cause, count in stats.failures.copy().items():
            failures.add_metric((cause,), count)
        yield failures


class _LogMetrics(Collector):
    """What has become of log lines."""

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        yield CounterMetricFamily(
            "pdrouter_log_lines_dropped",
            "Log lines that were not written, because standard output was not read fast enough.",
            value=count_dropped_lines(),
        )
