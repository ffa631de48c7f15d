"""Reads the metrics of every ready pod, again and again, so that choices can follow its load."""

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType, TracebackType

from pdrouter.cluster.pods import Pod, Role, format_address
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.engine_http.client import ClientLimits, HttpClient
from pdrouter.engine_http.failures import PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engine_http.tls import EngineTls
from pdrouter.engines.reading import EngineReading, PageReader
from pdrouter.engines.registry import find_dialect, has_metrics
from pdrouter.load.counters import MeanMeter, RequestMeter, TokenCounter
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Clock, Ledger
from pdrouter.load.pod_speeds import PodKind
from pdrouter.load.samples import EngineSample, Samples
from pdrouter.load.scrape_stats import ScrapeStats

log = logging.getLogger(__name__)

_PAGE_BYTES = 1024 * 1024
_HEADERS: Mapping[str, str] = MappingProxyType({"accept": "text/plain;version=0.0.4"})
"""The format without exemplars; not compressed, which costs both sides CPU."""

# What scraping may cost, however many pods there are: a scrape of a page of 100 KB takes 0.3 to
# 0.8 ms of CPU, by the machine (`python -m benchmarks.scraping`).
_SCRAPES_PER_S = 150

# Least time between two steps: to wake up costs as much as a scrape, so some start together. Their
# answers are read in turns of the loop, as those of side legs are.
_STEP_S = 0.2

# Two failures in a row leave the last sample in use.
_FRESH_INTERVALS = 3

# How often to look for pods when there are none.
_IDLE_S = 1.0

# Failures in a row that are worth a line in the log.
_LOUD_FAILURES = 3


class ScrapeFailure(StrEnum):
    """Why a scrape gave no sample."""

    CONNECT = "connect"
    TRANSPORT = "transport"
    TIMEOUT = "timeout"
    STATUS = "status"
    TOO_LARGE = "too-large"
    NO_METRICS = "no-metrics"
    INTERNAL = "internal"


class _ScrapeFailed(Exception):
    def __init__(self, cause: ScrapeFailure, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(slots=True, eq=False)
class _Target:
    """A pod that is scraped, with what must outlive one scrape."""

    pod: Pod
    page: PageReader
    tokens: TokenCounter = field(default_factory=TokenCounter)
    prompts: TokenCounter = field(default_factory=TokenCounter)
    gaps: MeanMeter = field(default_factory=MeanMeter)
    requests: RequestMeter = field(default_factory=RequestMeter)
    scraping: asyncio.Task[None] | None = None
    failures: int = 0

    @classmethod
    def create(cls, pod: Pod) -> "_Target":
        """Begin with a pod that was never scraped."""
        return cls(pod, PageReader(find_dialect(pod.engine), pod.number))

    def has_page_of(self, pod: Pod) -> bool:
        """Return whether the metrics of a newer state of the pod are the same page."""
        own = self.pod
        return (own.ip, own.metrics_port, own.engine, own.rank) == (
            *(pod.ip, pod.metrics_port, pod.engine, pod.rank),
        )


def _forget_it(uid: str) -> None:
    del uid


class MetricsScraper:
    """Scrapes the ready pods in turns. Use as an async context manager around `run`.

    The pods stand in a queue. At even steps, with some jitter, the first few of them go to its end
    and are scraped, each in a task of its own: the scrapes of an interval are spread over it, and
    no pod waits for another. New pods come first.

    Attributes:
        samples: the newest sample by UID, without those that are not fresh any more. The scraper's
            own record, for a request looks at it for every pod: do not change it.
        stats: what scraping has met.
    """

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        *,
        interval_s: float = 1.0,
        deadline_s: float = 2.0,
        clock: Clock = time.monotonic,
        failures: FailureMemory | None = None,
        on_lost: Callable[[str], object] = _forget_it,
        samples: Samples | None = None,
        tls: EngineTls | None = None,
    ) -> None:
        """Set up the scraper; nothing is opened yet.

        Args:
            cache: the pods.
            ledger: work in flight that this router has sent.
            interval_s: time from one scrape of a pod to the next; longer where there are so many
                pods that scraping would take more than about a tenth of a core.
            deadline_s: time that a scrape may take.
            clock: gives the time of samples; the ledger's.
            failures: is told which pods cannot be connected to.
            on_lost: called with the UID of each pod that cannot be connected to.
            samples: where they are kept; None for a place of its own.
            tls: how engines are spoken to; None for plain text.
        """
        self._cache = cache
        self._ledger = ledger
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._clock = clock
        self._failures = failures or FailureMemory()
        self._on_lost = on_lost
        self._tls = tls
        self._client: HttpClient | None = None
        self._view: ClusterView | None = None
        self._targets: OrderedDict[str, _Target] = OrderedDict()
        self._samples = Samples() if samples is None else samples
        self.samples: Mapping[str, EngineSample] = self._samples
        self.stats = ScrapeStats()

    @property
    def interval_s(self) -> float:
        """Time from one scrape of a pod to the next, for as many pods as there are."""
        return max(self._interval_s, len(self._targets) / _SCRAPES_PER_S)

    @property
    def fresh_s(self) -> float:
        """Age up to which samples count; it is looked at once an interval.

        A pod whose every answer just meets the deadline stays below it.
        """
        return _FRESH_INTERVALS * self.interval_s + self._deadline_s

    async def __aenter__(self) -> "MetricsScraper":
        limits = ClientLimits(self._deadline_s / 2, self._deadline_s, _PAGE_BYTES)
        # Each pod has at most one connection, and so many scrapes as start within the deadline
        # are under way at once.
        self._client = HttpClient(limits, self._interval_s * _FRESH_INTERVALS + 60, self._tls)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def run(self) -> None:
        """Scrape until cancelled."""
        client = self._client
        if client is None:
            raise RuntimeError("the scraper is not open")
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            due = loop.time()
            while True:
                self._follow_view()
                turns, seconds = self._plan_step()
                for _ in range(turns):
                    target = self._take_turn()
                    if target.scraping is None:
                        target.scraping = tasks.create_task(self._scrape(client, target))
                # What a timer was late is made up for at the next step, but a stall of the loop
                # is not followed by a burst.
                due = max(due + seconds, loop.time())
                await asyncio.sleep(due - loop.time())

    def _follow_view(self) -> None:
        """Take over the pods of the newest view, and forget those that are gone."""
        view = self._cache.view
        if view is self._view:
            return
        self._view = view
        pods = {pod.uid: pod for pod in view.pods if pod.ready and _serves(pod)}
        kept: OrderedDict[str, _Target] = OrderedDict()
        for uid, target in self._targets.items():
            if uid in pods and target.has_page_of(pods[uid]):
                kept[uid] = target
            else:
                self._drop_sample(uid)
                self._ledger.rates.note_buckets(uid, ())
                if target.scraping is not None:
                    target.scraping.cancel()
        new = {uid: pod for uid, pod in pods.items() if uid not in kept}
        for uid, pod in new.items():
            self._ledger.rates.note_kind(uid, PodKind(pod.model, pod.hardware))
        created = OrderedDict((uid, _Target.create(pod)) for uid, pod in new.items())
        self._targets = created | kept

    def _plan_step(self) -> tuple[int, float]:
        """Return how many pods have their turn now, and the seconds until the next step."""
        count = len(self._targets)
        if not count:
            return 0, min(self._interval_s, _IDLE_S)
        spacing = self.interval_s / count
        turns = min(count, max(1, round(_STEP_S / spacing)))
        return turns, turns * spacing * random.uniform(0.8, 1.2)

    def _take_turn(self) -> _Target:
        """Return the pod whose turn it is, and drop its sample if that is too old."""
        uid, target = next(iter(self._targets.items()))
        self._targets.move_to_end(uid)
        sample = self._samples.get(uid)
        if sample is not None and self._clock() - sample.at > self.fresh_s:
            self._drop_sample(uid)
            target.tokens, target.prompts = TokenCounter(), TokenCounter()
        return target

    def _drop_sample(self, uid: str) -> None:
        self._samples.drop(uid)
        self._ledger.note_others(uid, 0.0)

    async def _scrape(self, client: HttpClient, target: _Target) -> None:
        start = time.perf_counter()
        try:
            sample = await self._fetch(client, target)
        except _ScrapeFailed as failed:
            # An engine without metrics, or whose page is slow, can be connected to all the same.
            connected = failed.cause is not ScrapeFailure.CONNECT
            self._failures.note_scrape(target.pod.uid, connected=connected)
            if not connected:
                self._on_lost(target.pod.uid)
            elif not has_metrics(target.pod.engine):
                return  # That it can be connected to is all there is to know.
            self.stats.failures[failed.cause] += 1
            target.failures += 1
            if target.failures == _LOUD_FAILURES:
                log.warning("no metrics from pod %s: %s", target.pod.name, failed)
        except Exception:
            # An engine's page must not end the router, whatever it has in it.
            log.exception("metrics of pod %s cannot be read", target.pod.name)
            self.stats.failures[ScrapeFailure.INTERNAL] += 1
        else:
            target.failures = 0
            self._failures.note_scrape(target.pod.uid, connected=True)
            self._samples.put(target.pod.uid, sample)
            self._ledger.note_others(target.pod.uid, sample.others)
        finally:
            target.scraping = None
            self.stats.scrapes += 1
            self.stats.seconds += time.perf_counter() - start

    async def _fetch(self, client: HttpClient, target: _Target) -> EngineSample:
        """Return a new sample of a pod.

        Raises:
            _ScrapeFailed: there is none.
        """
        pod = target.pod
        path = target.page.dialect.path
        address = format_address(pod.ip, pod.metrics_port)
        # Another port is that of something beside the engine.
        plain = self._tls is None or pod.metrics_port != pod.port
        url = f"{'http' if plain else 'https'}://{address}{path}"
        look = _Look(self._clock, lambda: self._ledger.count_requests(pod.uid))
        try:
            answer = await client.request(
                *("GET", address, path, _HEADERS),
                body=None,
                total_s=self._deadline_s,
                progress=look,
                plain=plain,
            )
        except PostFailed as failed:
            raise _ScrapeFailed(ScrapeFailure(failed.kind), f"{url}: {failed}") from None
        if answer.status != 200:
            raise _ScrapeFailed(ScrapeFailure.STATUS, f"{url} answers {answer.status}")
        reading = target.page.read(answer.body)
        if reading == EngineReading():
            message = f"{url} has none of the metrics of engine {pod.engine!r}"
            raise _ScrapeFailed(ScrapeFailure.NO_METRICS, message)
        self._ledger.rates.note_buckets(pod.uid, reading.prefill_buckets or ())
        counted = target.tokens.read(look.at, reading.generated_tokens)
        return EngineSample(
            at=look.at,
            own_requests=look.own,
            running=reading.running,
            waiting=reading.waiting,
            kv_usage=reading.kv_usage,
            kv_capacity_tokens=reading.kv_capacity_tokens,
            generated_tokens_per_s=counted
            if reading.generated_tokens_per_s is None
            else reading.generated_tokens_per_s,
            prefill_seconds=reading.prefill_seconds,
            padded_tokens=reading.padded_tokens,
            gap_s=target.gaps.read(look.at, reading.gap_seconds, reading.gaps),
            computes_prompts=reading.computes_prompts,
            cpu_usage=reading.cpu_usage,
            utilization=reading.utilization,
            prompt_tokens_per_s=target.prompts.read(look.at, reading.prompt_tokens),
            means=target.requests.read(look.at, reading.requests),
        )


def _serves(pod: Pod) -> bool:
    """Return whether a pod may get requests; one of another role may where its owner says so."""
    return pod.role is not Role.OTHER or (pod.config is not None and pod.config.combines)


class _Look(PostProgress):
    """What is known at the moment when an engine begins to answer: it has just made the page.

    Attributes:
        at: the time.
        own: requests that this router has there.
    """

    def __init__(self, clock: Clock, count_own: Callable[[], int]) -> None:
        super().__init__()
        self._clock = clock
        self._count_own = count_own
        self.at = 0.0
        self.own = 0

    def note_head(self, status: int) -> None:
        """Look."""
        super().note_head(status)
        self.at, self.own = self._clock(), self._count_own()
