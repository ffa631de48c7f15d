"""The composition root: builds the router from its settings."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Protocol

from pdrouter.admin.server import AdminServer
from pdrouter.cluster.router_group import form_group
from pdrouter.cluster.view import PodCache
from pdrouter.extproc.access_log.service import STREAM_PATH, AccessLogService
from pdrouter.extproc.grpcio_server import GrpcioServer
from pdrouter.extproc.http2.server import Http2Server
from pdrouter.extproc.limits import HANDLE_HEADROOM_BYTES
from pdrouter.extproc.server import CreateServer, ReceiveStream, Server, ServerOptions
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.engine_check import EngineCheck, describe_silence
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.peers import PeerKnowledge
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.load.samples import EngineSample, count_free_tokens, count_kv_capacity
from pdrouter.load.scraper import MetricsScraper
from pdrouter.load.whole_serving import WholeServing
from pdrouter.ports import naming_port
from pdrouter.process_limits import (
    FreedMemory,
    choose_body_memory,
    find_memory_limit,
)
from pdrouter.routing.homes import Homes
from pdrouter.routing.state import RoutingState
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import Transport
from pdrouter.telemetry.event_loop import EventLoopWatch
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router
from pdrouter.wiring.rules import choose_ejection_rules, find_tls, limit_client
from pdrouter.wiring.sources import create_source

if TYPE_CHECKING:
    from pdrouter.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

SERVERS: Mapping[Transport, CreateServer] = MappingProxyType(
    {Transport.GRPCIO: GrpcioServer, Transport.HTTP2: Http2Server}
)
"""What carries the exchanges, by the setting that chooses it."""


class _Memory(Protocol):
    def forget(self, uid: str) -> object:
        """Forget a pod."""


class Application:
    """A running router. Use as an async context manager.

    Attributes:
        cache: the pods.
        ledger: work in flight.
        failures: which pods have failed of late.
        bodies: the request bodies that wait.
        telemetry: metrics and open requests.
        server: the gRPC port.
        admin: the HTTP port.
    """

    def __init__(
        self,
        settings: Settings,
        admin_socket: Path | None = None,
        worker: int = 0,
        *,
        asks_engines: bool = True,
    ) -> None:
        """Build the router; nothing is opened yet.

        Args:
            settings: what the operator decided.
            admin_socket: Unix socket for the admin pages; None for the HTTP port.
            worker: which of several workers this is.
            asks_engines: whether it asks the engines of an endpoints file what they serve.

        Raises:
            SettingInvalid: the settings name no source of pods, or not which replica this is, or
                ask for traces without the package for them.
            TokenizerUnusable: a model's tokenizer cannot be loaded.
        """
        self._settings = settings
        self._admin_socket = admin_socket
        # Kubernetes has asked its pods before they are ready.
        self._asks_engines = asks_engines and settings.endpoints is not None
        self._stack = AsyncExitStack()
        self._group = form_group(settings, worker)
        self.ledger = Ledger(PrefillRates(settings.prefill_tokens_per_s, settings.prefill_buckets))
        prefixes = self._create_index(count_kv_capacity)
        self.failures = FailureMemory(choose_ejection_rules(settings))
        self.peers = PeerKnowledge()
        self._priorities = PriorityKnowledge()
        self._whole = WholeServing(settings.handover_s)
        self._decoded = DecodedPrompts(self._create_index(count_free_tokens))
        # What goes with the engine of a pod, when another one runs in it.
        of_engines = (
            *(prefixes, self.failures, self.peers),
            *(self._priorities, self._whole, self._decoded),
        )
        self.cache = PodCache(
            lambda uid: _forget(uid, self.ledger, *of_engines),
            lambda uid: _forget(uid, *of_engines),
        )
        self._engines = self._create_scraper()
        self._check = EngineCheck(self.cache)
        self._source = create_source(settings, self.cache, self._group, self._count_reload)
        self._tokenizers = _create_tokenizers(settings)
        self.bodies = _bound_bodies(settings)
        self._tracing = _create_tracing(settings, worker)
        log_entries: Counter[str] = Counter()
        self.telemetry = self._create_telemetry(log_entries)
        self._client = EngineClient(limit_client(settings))
        self._exchanges = self._create_exchanges(prefixes)
        self.server = self._create_server(self._exchanges, log_entries)
        self.admin = self._create_admin()

    def _create_index(
        self, count: Callable[[Mapping[str, EngineSample], Iterable[str]], float | None]
    ) -> PrefixIndex:
        return PrefixIndex(
            self._settings.prefix_index_bytes,
            self._settings.prefix_ttl_minutes * 60,
            time.monotonic,
            lambda uids: count(self._engines.samples, uids),
        )

    def _create_telemetry(self, log_entries: Counter[str]) -> RequestTelemetry:
        return RequestTelemetry(
            self.cache,
            self.ledger,
            lambda: self._source.stats,
            self._settings.kept_decisions,
            scrapes=self._engines.stats,
            tokenizers=self._tokenizers.stats,
            log_entries=log_entries,
            failures=self.failures,
            bodies=self.bodies,
            trace=self._tracing.take if self._tracing else None,
        )

    def _create_exchanges(self, prefixes: PrefixIndex) -> Exchanges:
        samples = self._engines.samples
        state = RoutingState(
            self.ledger,
            prefixes,
            samples,
            time.monotonic,
            Random(),
            self.failures,
            self._priorities,
            self._whole,
            self._decoded,
            Homes(self._group),
        )
        around = Surroundings(
            cache=self.cache,
            router=create_router(self._settings, state),
            client=self._client,
            observer=self.telemetry,
            tokenizers=self._tokenizers,
            bodies=self.bodies,
            routes=self._source.routes,
            peers=self.peers,
            begin_trace=self._tracing.begin if self._tracing else None,
        )
        return Exchanges(self._settings, around)

    def _create_server(self, exchanges: Exchanges, log_entries: Counter[str]) -> Server:
        settings = self._settings
        services: dict[str, ReceiveStream] = {}
        if settings.observe_tokens.access_log:
            access_log = AccessLogService(exchanges.answers.receive, log_entries)
            services[STREAM_PATH] = access_log.receive_stream
        options = ServerOptions(
            *settings.grpc_bind,
            settings.max_message_bytes,
            settings.grpc_keepalive_s,
            find_tls(settings),
        )
        return SERVERS[settings.transport](exchanges.open, options, services)

    def _create_scraper(self) -> MetricsScraper:
        return MetricsScraper(
            self.cache,
            self.ledger,
            interval_s=self._settings.metrics_interval_ms / 1000,
            failures=self.failures,
            # Without the API server, this is how an engine is seen to start anew.
            on_lost=self._note_unreachable,
        )

    def _create_admin(self) -> AdminServer:
        return AdminServer(
            self.cache,
            self.ledger,
            self.telemetry,
            self._settings.show(),
            lambda: self.server.draining,
            failures=self.failures,
            samples=self._engines.samples,
            priorities=self._priorities,
            describe_silence=self._describe_silence,
            whole=self._whole,
            group=self._group,
        )

    async def __aenter__(self) -> "Application":
        """Read the pods, and listen.

        Raises:
            SourceUnusable: the pods cannot be read.
            CertificatesInvalid: the files for TLS cannot be used.
            PortUnusable: a port cannot be opened.
        """
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                stack.push_async_callback(self._tracing.close)
            await stack.enter_async_context(self._source)
            await stack.enter_async_context(self._client)
            # What streams leave behind when the server stops has a last moment.
            await stack.enter_async_context(self._exchanges.releases)
            await stack.enter_async_context(self._exchanges.drains)
            await stack.enter_async_context(self._exchanges.priorities.questions)
            await stack.enter_async_context(self._tokenizers)
            await stack.enter_async_context(self._engines)
            with naming_port("PDROUTER_GRPC_BIND (--grpc-bind)", *self._settings.grpc_bind):
                await self.server.start()
            stack.push_async_callback(self.server.stop)
            # After the gRPC port: who can ask whether the router is ready finds it serving.
            if self._admin_socket is None:
                with naming_port("PDROUTER_HTTP_BIND (--http-bind)", *self._settings.http_bind):
                    await self.admin.start(*self._settings.http_bind)
            else:
                await self.admin.start_at_socket(self._admin_socket)
            stack.push_async_callback(self.admin.stop)
            # Last, because a task group wraps what is raised inside it.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            loop = self.telemetry.metrics.event_loop
            stack.enter_context(EventLoopWatch(self._note_lag, loop.stall_seconds.observe))
            freed = FreedMemory(lambda: self.bodies.bytes)
            works = [self._source.watch(), self._engines.run(), freed.run()]
            if self._asks_engines:
                works.append(self._check.run())
            if self.failures.rules.asks:
                works.append(self._exchanges.questions.run())
            for work in works:
                stack.callback(tasks.create_task(work).cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace  # Kept from the task group, which would wrap the error.
        await self._stack.aclose()

    async def drain(self, *, lame_duck: bool = True) -> None:
        """Let open requests finish, as far as the settings give them time.

        Args:
            lame_duck: whether new ones are served meanwhile, until their senders have noticed.
        """
        lame_duck_s = self._settings.lame_duck_s if lame_duck else 0.0
        await self.server.drain(lame_duck_s, self._settings.drain_s)

    def _note_unreachable(self, uid: str) -> None:
        self.peers.note_unreachable(uid)
        self._priorities.note_unreachable(uid)

    def _note_lag(self, seconds: float) -> None:
        self.telemetry.metrics.event_loop.lag_seconds.observe(seconds)
        self._exchanges.leases.note_lag(seconds)

    def _describe_silence(self) -> list[str]:
        """Say of which models no ready pod, or none for a leg, has answered of late."""
        return describe_silence(
            self.cache.view,
            lambda pod: self._check.is_silent(pod) or self.failures.is_left_out(pod.uid),
        )

    def _count_reload(self, success: bool) -> None:
        self.telemetry.metrics.endpoints_reloads.labels("ok" if success else "broken").inc()


def _create_tracing(settings: Settings, worker: int) -> "Tracing | None":
    """Return what traces requests; None where nothing is to.

    Raises:
        SettingInvalid: the package for it is not installed.
    """
    if not settings.exports_traces:
        return None
    try:
        # Loaded when needed: it costs memory, and is not installed everywhere.
        from pdrouter.telemetry.tracing import create_tracing  # noqa: PLC0415

        return create_tracing(settings, worker)
    except ModuleNotFoundError as error:
        message = f"traces (OTEL_*) need the package pdrouter[tracing]: {error}"
        raise SettingInvalid(message) from error


def _create_tokenizers(settings: Settings) -> PromptTokenizers:
    return PromptTokenizers(
        {model: Path(file) for model, file in settings.tokenizers},
        settings.tokenizer_timeout_s,
        settings.tokenizer_threads,
    )


def _bound_bodies(settings: Settings) -> HeldBodies:
    limit = settings.max_held_bytes
    return HeldBodies(
        settings.max_message_bytes - HANDLE_HEADROOM_BYTES,
        choose_body_memory(find_memory_limit(), settings.workers)
        if limit is None
        else limit // settings.workers,
    )


def _forget(uid: str, *memories: _Memory) -> None:
    for memory in memories:
        memory.forget(uid)
