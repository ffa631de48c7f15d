"""The scraper against engines over real sockets: what it shows, forgets and survives."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from factories import make_pod
from loopback import Server, Talk, answering, hang, listen, reset, trickle
from waiting import LONGER_S, WAIT_S, wait_until

from pdrouter.cluster.pod_config import PodConfig, Profile
from pdrouter.cluster.pods import Pod, Role, parse_address
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.scraper import MetricsScraper
from pdrouter.telemetry.metrics import Metrics
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

INTERVAL_S = 0.01


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Page:
    """A metrics page that a test changes while it is served; `text=None` lets requests hang."""

    def __init__(self, *lines: str, status: int = 200) -> None:
        self.text: str | None = "\n".join(lines)
        self.status = status
        self.paths: list[str] = []
        self._later: Callable[[], None] = lambda: None

    def change(self, text: str, clock: Clock, now: float) -> None:
        """From the next request on, serve another page, and let it be another time."""

        def apply() -> None:
            self.text, clock.now, self._later = text, now, lambda: None

        self._later = apply

    async def talk(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await server.read(reader)
            self.paths.append(request.line.split()[1])
            self._later()
            if self.text is None:
                assert await reader.read() == b""
                return
            body = self.text.encode()
            head = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)


def running(count: float) -> str:
    return f'vllm:num_requests_running{{model_name="m"}} {count}\n'


def tokens(count: float) -> str:
    return f"vllm:generation_tokens_total {count}\n"


class Setup:
    """A scraper with its pods."""

    def __init__(self) -> None:
        self.cache = PodCache()
        self.ledger = Ledger()
        self.clock = Clock()
        self.engines = MetricsScraper(
            self.cache,
            self.ledger,
            interval_s=INTERVAL_S,
            deadline_s=LONGER_S,
            clock=self.clock,
        )

    def show(self, *pods: Pod) -> None:
        self.cache.replace(pods)

    async def scrape_again(self, times: int = 1) -> None:
        """Return once so many scrapes have begun and ended from now on."""
        goal = self.engines.stats.scrapes + 1 + times
        await wait_until(lambda: self.engines.stats.scrapes >= goal)


@asynccontextmanager
async def scraping(setup: Setup) -> AsyncIterator[None]:
    async with setup.engines:
        task = asyncio.create_task(setup.engines.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    async with scraping(setup):
        yield setup


def pod_at(address: str, name: str = "pod-0", role: Role = Role.DECODE, **changes: Any) -> Pod:
    ip, port = parse_address(address)
    return make_pod(name, role, ip=ip, port=port, **changes)


@contextmanager
def failing(setup: Setup, cause: str) -> Iterator[None]:
    before = setup.engines.stats.failures[cause]
    yield
    assert setup.engines.stats.failures[cause] > before


# --- what is scraped -----------------------------------------------------------------------------


async def test_a_simulated_engine_says_what_it_does(setup: Setup) -> None:
    config = EngineConfig(role="decode", itl_ms=2, block_size=16, kv_blocks=640, slots=1)
    body = {"model": config.base_model, "prompt": "hello", "max_tokens": 10_000, "stream": True}
    samples = setup.engines.samples
    async with SimulatedEngine(config) as engine:
        url = f"http://{engine.address}/v1/completions"
        setup.show(pod_at(engine.address))
        async with (
            aiohttp.ClientSession() as client,
            client.post(url, json=body),
            client.post(url, json=body),
        ):
            await wait_until(lambda: "uid-pod-0" in samples and samples["uid-pod-0"].waiting == 1)
            sample = samples["uid-pod-0"]
            assert (sample.running, sample.kv_capacity_tokens, sample.at) == (1, 10_240, 100.0)
            assert sample.kv_usage is not None
            assert 0 < sample.kv_usage < 1
            setup.clock.now += 1
            await wait_until(lambda: bool(samples["uid-pod-0"].generated_tokens_per_s))
        await wait_until(lambda: samples["uid-pod-0"].running == 0)
        means = samples["uid-pod-0"].means
        assert means is not None
        assert means.queue_s is not None
        assert means.prefill_s is not None


async def test_every_ready_pod_that_serves_requests_is_scraped(setup: Setup) -> None:
    pages = {name: Page(running(3)) for name in ("decode", "prefill", "both", "router", "unready")}
    async with AsyncExitStack() as stack:
        pods = []
        for name, page in pages.items():
            server = await stack.enter_async_context(listen(page.talk))
            role = {"router": Role.OTHER, "unready": Role.DECODE}.get(name) or Role(name)
            pods.append(pod_at(server.address, name, role=role, ready=name != "unready"))
        setup.show(*pods)
        await wait_until(lambda: len(setup.engines.samples) == 3)
        await setup.scrape_again(10)
        assert set(setup.engines.samples) == {"uid-decode", "uid-prefill", "uid-both"}
        assert pages["router"].paths == pages["unready"].paths == []


async def test_a_combined_pod_is_scraped_whatever_its_role_is_called(setup: Setup) -> None:
    """Or it would never be known to have room for what the pairs cannot take."""
    profile = Profile(combined=True)
    config = PodConfig(MappingProxyType({"default": profile}))
    async with listen(Page(running(3)).talk) as server:
        setup.show(pod_at(server.address, role=Role.OTHER, config=config))
        await setup.scrape_again()
        assert set(setup.engines.samples) == {"uid-pod-0"}


@pytest.mark.parametrize(
    ("engine", "path", "page"),
    [
        ("vllm", "/metrics", running(3)),
        ("sglang", "/metrics", "sglang:num_running_reqs 3"),
        ("trtllm", "/prometheus/metrics", "trtllm_num_requests_running 3"),
    ],
)
async def test_each_engine_is_asked_where_and_as_it_wants(
    setup: Setup, engine: str, path: str, page: str
) -> None:
    served = Page(page)
    async with listen(served.talk) as server:
        setup.show(pod_at(server.address, engine=engine))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        assert setup.engines.samples["uid-pod-0"].running == 3
        assert set(served.paths) == {path}


async def test_metrics_may_have_a_port_of_their_own(setup: Setup) -> None:
    async with listen(Page(running(3)).talk) as server:
        ip, port = parse_address(server.address)
        setup.show(make_pod(ip=ip, port=1, metrics_port=port))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)


async def test_connections_are_kept(setup: Setup) -> None:
    async with listen(Page(running(3)).talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again(5)
        assert server.connections == 1


async def test_a_sample_knows_how_many_requests_of_ours_were_there(setup: Setup) -> None:
    async with listen(Page(running(3)).talk) as server:
        setup.show(pod_at(server.address))
        samples = setup.engines.samples
        with (
            setup.ledger.start(Leg.DECODE, "uid-pod-0"),
            setup.ledger.start(Leg.DECODE, "uid-pod-0"),
        ):
            await setup.scrape_again()
            assert samples["uid-pod-0"].own_requests == 2
        await setup.scrape_again()
        assert samples["uid-pod-0"].own_requests == 0


async def test_requests_of_others_are_waited_for_while_the_pod_is_seen(setup: Setup) -> None:
    ledger = setup.ledger
    for _ in range(200):
        ledger.start(Leg.PREFILL, "uid-elsewhere", 1000).release()
    async with listen(Page(running(3)).talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again()
        assert ledger.predict_prefill_wait("uid-pod-0") > 0
        setup.show()
        await wait_until(lambda: ledger.predict_prefill_wait("uid-pod-0") == 0)


async def test_buckets_of_prompts_are_those_that_the_engine_says_now(setup: Setup) -> None:
    def ran(*buckets: int) -> str:
        return running(3) + "".join(
            f'vllm_neuron:neff_execution_count{{bucket_name="prefill_s{bucket}"}} 2\n'
            for bucket in buckets
        )

    page, rates = Page(ran(512)), setup.ledger.rates

    def says(*buckets: int) -> Callable[[], bool]:
        return lambda: rates.find_shapes("uid-pod-0").buckets == buckets

    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await wait_until(says(512))
        page.text = ran(4096, 512)
        await wait_until(says(512, 4096))
        page.text = running(3)
        await wait_until(says())
        assert rates.shapes == {}
        page.text = ran(1024)
        await wait_until(says(1024))
        # A page that cannot be read for a while does not change what was compiled.
        page.status = 503
        with failing(setup, "status"):
            await setup.scrape_again()
        assert says(1024)()
        setup.show()
        await wait_until(lambda: rates.shapes == {})


# --- tokens per second ---------------------------------------------------------------------------


async def test_tokens_per_second_are_counted_between_two_samples(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again()

        def rate() -> float | None:
            return setup.engines.samples["uid-pod-0"].generated_tokens_per_s

        assert rate() is None
        page.change(tokens(1500), setup.clock, 102.0)
        await wait_until(lambda: rate() == 250)
        # No time has passed since: the rate stays until a span is long enough to tell.
        page.text = tokens(1600)
        await setup.scrape_again()
        assert rate() == 250
        page.change(tokens(1600), setup.clock, 102.1)
        await setup.scrape_again()
        assert rate() == 250
        page.change(tokens(1600), setup.clock, 104.0)
        await wait_until(lambda: rate() == 50)


async def test_an_engine_that_has_started_again_has_no_rate_at_first(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again()
        page.change(tokens(1500), setup.clock, 102.0)
        samples = setup.engines.samples
        await wait_until(lambda: samples["uid-pod-0"].generated_tokens_per_s == 250)
        page.change(tokens(10), setup.clock, 103.0)
        await wait_until(lambda: samples["uid-pod-0"].generated_tokens_per_s is None)
        page.change(tokens(30), setup.clock, 105.0)
        await wait_until(lambda: samples["uid-pod-0"].generated_tokens_per_s == 10)


async def test_a_page_without_the_counter_does_not_keep_a_rate(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again()
        page.change(tokens(1500), setup.clock, 102.0)
        samples = setup.engines.samples
        await wait_until(lambda: samples["uid-pod-0"].generated_tokens_per_s == 250)
        page.text = running(1)
        await wait_until(lambda: samples["uid-pod-0"].generated_tokens_per_s is None)


# --- pods that do not answer ---------------------------------------------------------------------


@pytest.mark.parametrize("talk", [hang, trickle], ids=["silent", "slow"])
async def test_a_pod_that_is_slow_delays_no_other(setup: Setup, talk: Talk) -> None:
    async with listen(talk) as slow, listen(Page(running(3)).talk) as quick:
        setup.show(pod_at(slow.address, "slow"), pod_at(quick.address, "quick"))
        await wait_until(lambda: len(slow.requests) == 1)
        await wait_until(lambda: len(quick.requests) > 10)
        assert set(setup.engines.samples) == {"uid-quick"}
        # One scrape of a pod at a time.
        assert len(slow.requests) == 1


@pytest.mark.parametrize(
    ("talk", "cause"),
    [
        (reset, "transport"),
        (answering(), "transport"),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nvllm:"), "transport"),
        (answering(b"SSH-2.0-server\r\n"), "transport"),
        (Page(running(3), status=404).talk, "status"),
        (Page(running(3), status=302).talk, "status"),
        (Page("<html>not found</html>").talk, "no-metrics"),
        (Page("vllm:num_requests_running NaN").talk, "no-metrics"),
        (Page("").talk, "no-metrics"),
        (Page(running(3), "x" * 5_000_000).talk, "too-large"),
    ],
)
async def test_what_gives_no_sample_is_counted_by_cause(
    setup: Setup, talk: Talk, cause: str
) -> None:
    async with listen(talk) as server:
        setup.show(pod_at(server.address))
        with failing(setup, cause):
            await setup.scrape_again()
        assert dict(setup.engines.samples) == {}


async def test_a_closed_port_is_counted_as_such(setup: Setup) -> None:
    async with listen(hang) as server:
        address = server.address
    setup.show(pod_at(address))
    with failing(setup, "connect"):
        await setup.scrape_again()


async def test_an_engine_that_has_no_metrics_is_no_failure(setup: Setup) -> None:
    """That its port is open is all that there is to know of xDiT."""
    async with listen(Page("", status=404).talk) as server:
        setup.show(pod_at(server.address, engine="xdit"))
        await setup.scrape_again(3)
        assert sum(setup.engines.stats.failures.values()) == 0
    with failing(setup, "connect"):
        await setup.scrape_again()


async def test_a_scrape_ends_at_its_deadline() -> None:
    setup = Setup()
    setup.engines = MetricsScraper(
        setup.cache, setup.ledger, interval_s=INTERVAL_S, deadline_s=0.02, clock=setup.clock
    )
    async with listen(hang) as server, scraping(setup):
        setup.show(pod_at(server.address))
        with failing(setup, "timeout"):
            await setup.scrape_again()


async def test_a_pod_that_keeps_failing_is_named_once(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    async with listen(Page("nothing").talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again(6)
        (line,) = [record.getMessage() for record in caplog.records]
        assert "pod-0" in line
        assert f"http://{server.address}/metrics" in line


async def test_a_sample_outlives_failures_until_it_is_stale(setup: Setup) -> None:
    page = Page(running(3))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        page.status = 500
        await setup.scrape_again()
        setup.clock.now += setup.engines.fresh_s - 0.001
        await setup.scrape_again()
        assert setup.engines.samples["uid-pod-0"].running == 3
        setup.clock.now += 0.002
        await wait_until(lambda: not setup.engines.samples)
        page.status = 200
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)


async def test_the_sample_of_a_pod_that_hangs_goes_stale(setup: Setup) -> None:
    page = Page(running(3))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        page.text = None
        received = len(server.requests)
        await wait_until(lambda: len(server.requests) > received)
        setup.clock.now += setup.engines.fresh_s + 1
        await wait_until(lambda: not setup.engines.samples)


async def test_a_rate_does_not_span_the_time_in_which_a_pod_was_silent(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        page.status = 500
        await setup.scrape_again()
        setup.clock.now += setup.engines.fresh_s + 1
        await wait_until(lambda: not setup.engines.samples)
        page.text, page.status = tokens(5000), 200
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        assert setup.engines.samples["uid-pod-0"].generated_tokens_per_s is None


# --- pods that come and go -----------------------------------------------------------------------


async def test_pods_come_and_go(setup: Setup) -> None:
    async with listen(Page(running(1)).talk) as one, listen(Page(running(2)).talk) as two:
        first, second = pod_at(one.address, "one"), pod_at(two.address, "two")
        setup.show(first)
        await wait_until(lambda: set(setup.engines.samples) == {"uid-one"})
        setup.show(first, second)
        await wait_until(lambda: set(setup.engines.samples) == {"uid-one", "uid-two"})
        setup.show(second)
        await wait_until(lambda: set(setup.engines.samples) == {"uid-two"})
        asked = len(one.requests)
        setup.show(pod_at(two.address, "two", ready=False))
        await wait_until(lambda: not setup.engines.samples)
        setup.show(second)
        await wait_until(lambda: set(setup.engines.samples) == {"uid-two"})
        assert len(one.requests) == asked


async def test_a_pod_replaced_at_the_same_address_begins_anew(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address, "old"))
        await wait_until(lambda: set(setup.engines.samples) == {"uid-old"})
        page.change(tokens(9000), setup.clock, 102.0)
        setup.show(pod_at(server.address, "new"))
        await wait_until(lambda: set(setup.engines.samples) == {"uid-new"})
        assert setup.engines.samples["uid-new"].generated_tokens_per_s is None


async def test_a_pod_that_moves_is_asked_at_its_new_address(setup: Setup) -> None:
    async with listen(Page(running(1)).talk) as one, listen(Page(running(2)).talk) as two:
        samples = setup.engines.samples
        setup.show(pod_at(one.address))
        await wait_until(lambda: "uid-pod-0" in samples and samples["uid-pod-0"].running == 1)
        setup.show(pod_at(two.address))
        await wait_until(lambda: "uid-pod-0" in samples and samples["uid-pod-0"].running == 2)


async def test_an_update_that_changes_no_address_keeps_what_is_known(setup: Setup) -> None:
    page = Page(tokens(1000))
    async with listen(page.talk) as server:
        setup.show(pod_at(server.address))
        await wait_until(lambda: "uid-pod-0" in setup.engines.samples)
        page.change(tokens(1500), setup.clock, 102.0)
        setup.show(pod_at(server.address, roleset="other"))
        await wait_until(lambda: setup.engines.samples["uid-pod-0"].generated_tokens_per_s == 250)


async def test_a_scrape_of_a_pod_that_is_gone_is_given_up(setup: Setup) -> None:
    async with listen(hang) as server:
        setup.show(pod_at(server.address))
        await wait_until(lambda: len(server.requests) == 1)
        setup.show()
        await asyncio.wait_for(server.closed.wait(), WAIT_S)


async def test_one_engine_under_two_names_is_scraped_once(setup: Setup) -> None:
    async with listen(hang) as server, listen(Page(running(3)).talk) as other:
        pods = [pod_at(server.address, name, uid=server.address) for name in ("one", "two")]
        setup.show(*pods, pod_at(other.address, "other"))
        await wait_until(lambda: len(server.requests) == 1)
        await wait_until(lambda: len(other.requests) > 10)
        assert len(server.requests) == 1


async def test_more_pods_are_scraped_less_often(setup: Setup) -> None:
    assert setup.engines.interval_s == INTERVAL_S
    async with listen(Page(running(3)).talk) as server:
        setup.show(*(pod_at(server.address, f"pod-{number}") for number in range(300)))
        await wait_until(lambda: bool(setup.engines.samples))
        assert setup.engines.interval_s == 2.0
        # Not all at once.
        assert len(setup.engines.samples) < 300


# --- the end -------------------------------------------------------------------------------------


async def test_cancelling_leaves_nothing_behind() -> None:
    setup = Setup()
    tasks = asyncio.all_tasks()
    async with listen(hang) as server:
        async with scraping(setup):
            setup.show(pod_at(server.address))
            await wait_until(lambda: len(server.requests) == 1)
        await asyncio.wait_for(server.closed.wait(), WAIT_S)
        await wait_until(lambda: asyncio.all_tasks() == tasks)


async def test_a_scraper_that_is_not_open_does_not_run() -> None:
    with pytest.raises(RuntimeError):
        await Setup().engines.run()


async def test_what_scraping_has_met_is_exported(setup: Setup) -> None:
    async with listen(Page("nothing").talk) as server:
        setup.show(pod_at(server.address))
        await setup.scrape_again()
    setup.show()
    stats = setup.engines.stats
    page = Metrics(setup.cache, setup.ledger, lambda: 0, dict, scrapes=stats).render().decode()
    assert f"pdrouter_scrapes_total {float(stats.scrapes)}" in page
    failures = float(stats.failures["no-metrics"])
    assert f'pdrouter_scrape_failures_total{{cause="no-metrics"}} {failures}' in page
    assert f"pdrouter_scrape_seconds_total {stats.seconds}" in page
