"""The composition root: builds the router from its settings."""

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from pdrouter.admin.server import AdminServer
from pdrouter.cluster.router_group import form_group
from pdrouter.cluster.view import PodCache
from pdrouter.extproc.access_log.service import EXPORT_PATH, AccessLogService
from pdrouter.extproc.grpcio_server import GrpcioServer
from pdrouter.extproc.http2.server import Http2Server
from pdrouter.extproc.limits import HANDLE_HEADROOM_BYTES
from pdrouter.extproc.server import CreateServer, ReceiveStream, Server, ServerOptions
from pdrouter.garbage import GarbageSearches
from pdrouter.journal.journal import Journal
from pdrouter.journal.leading import Work, work_while_leading
from pdrouter.journal.memory import SharedMemory
from pdrouter.load.engine_check import EngineCheck, describe_silence
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.scraper import MetricsScraper
from pdrouter.ports import naming_port
from pdrouter.process_limits import (
    FreedMemory,
    choose_body_memory,
    find_memory_limit,
    read_resident_bytes,
)
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import Transport
from pdrouter.telemetry.event_loop import EventLoopWatch
from pdrouter.telemetry.journal import JournalMetrics
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.turns import Turns
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router
from pdrouter.wiring.knowledge import create_knowledge
from pdrouter.wiring.rules import find_engine_tls, find_tls, limit_client
from pdrouter.wiring.sharing import LANGUAGE, Sharing
from pdrouter.wiring.sources import create_source
from pdrouter.wiring.users import (
    create_keys_file,
    create_local_counters,
    create_shared_state,
    find_directory,
)

if TYPE_CHECKING:
    from pdrouter.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

SERVERS: Mapping[Transport, CreateServer] = MappingProxyType(
    {Transport.GRPCIO: GrpcioServer, Transport.HTTP2: Http2Server}
)
"""What carries the exchanges, by the setting that chooses it."""


class Application:
    """A running router. Use as an async context manager.

    Attributes:
        cache: the pods.
        knowledge: what choices are made by.
        ledger: work in flight.
        failures: which pods have failed of late.
        keys: the users who have keys.
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
        journals: SharedMemory | None = None,
    ) -> None:
        """Build the router; nothing is opened yet.

        Args:
            settings: what the operator decided.
            admin_socket: Unix socket for the admin pages; None for the HTTP port.
            worker: which of several workers this is.
            asks_engines: whether it asks the engines of an endpoints file what they serve.
            journals: what the workers tell each other; None for the only one.

        Raises:
            SettingInvalid: the settings name no source of pods, or not which replica this is, or
                ask for traces without the package for them.
            TokenizerUnusable: a model's tokenizer cannot be loaded.
            CertificatesInvalid: the files for TLS to engines cannot be used.
        """
        self._settings = settings
        self._admin_socket = admin_socket
        # Kubernetes has asked its pods before they are ready.
        self._asks_engines = asks_engines and settings.endpoints is not None
        self._stack = AsyncExitStack()
        self._group = form_group(settings)
        self._journal = self._open_journal(journals, worker)
        self._sharing = Sharing(self._journal)
        self.knowledge = create_knowledge(settings, self._sharing, self._group)
        self.ledger = self.knowledge.state.ledger
        self.failures = self.knowledge.state.failures
        self.cache = PodCache(self.knowledge.forget, self.knowledge.forget_engine)
        self._engine_tls = find_engine_tls(settings)
        self._engines = self._create_scraper()
        self._check = EngineCheck(self.cache, self._engine_tls)
        self._source = create_source(settings, self.cache, self._group, self._count_reload)
        self._tokenizers = _create_tokenizers(settings)
        self.bodies = _bound_bodies(settings)
        self._tracing = _create_tracing(settings, worker)
        self.keys = create_keys_file(settings, self._count_keys_reload)
        self._shared = create_shared_state(settings)
        log_entries: Counter[str] = Counter()
        self.telemetry = self._create_telemetry(log_entries)
        if self._journal is not None:
            self.telemetry.metrics.add(JournalMetrics(self._journal.events))
        # One for both: a turn that wakes by an engine's answer ends with what Envoy is told.
        self._turns = Turns()
        self._client = EngineClient(limit_client(settings), self._engine_tls, self._turns)
        self._exchanges = self._create_exchanges()
        self.telemetry.metrics.users.failures = self._exchanges.gate.failures
        if self._exchanges.turns is not None:
            self.telemetry.metrics.turns.waiting = self._exchanges.turns.count_waiting
        self.server = self._create_server(self._exchanges, log_entries)
        self.admin = self._create_admin()

    def _open_journal(self, journals: SharedMemory | None, worker: int) -> Journal | None:
        if journals is None:
            return None
        return Journal(
            journals,
            worker,
            LANGUAGE,
            list_pods=lambda: self.cache.view.pods,
            forget=self._forget,
        )

    def _forget(self, uid: str) -> None:
        self.knowledge.forget(uid)

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
            wanted=PodsWanted(
                self.ledger,
                self.knowledge.samples,
                self._settings.wanted_prefill_use,
                self._settings.wanted_decode_use,
            ),
            bodies=self.bodies,
            trace=self._tracing.take if self._tracing else None,
            keys=self.keys,
            redis=self._shared.stats if self._shared else None,
            observation=self._settings.observe_tokens,
        )

    def _create_exchanges(self) -> Exchanges:
        knowledge = self.knowledge
        around = Surroundings(
            cache=self.cache,
            router=create_router(self._settings, knowledge.state),
            client=self._client,
            observer=self.telemetry,
            tokenizers=self._tokenizers,
            bodies=self.bodies,
            routes=self._source.routes,
            peers=knowledge.peers,
            begin_trace=self._tracing.begin if self._tracing else None,
            sharing=self._sharing,
            keys=self.keys,
            counters=self._shared.counters
            if self._shared
            else create_local_counters(self._settings, self._sharing),
            directory=find_directory(self._settings, self._shared),
        )
        return Exchanges(self._settings, around)

    def _create_server(self, exchanges: Exchanges, log_entries: Counter[str]) -> Server:
        settings = self._settings
        services: dict[str, ReceiveStream] = {}
        if settings.observe_tokens.access_log:
            access_log = AccessLogService(
                exchanges.answers.receive, log_entries, counts=settings.observe_tokens.counts
            )
            services[EXPORT_PATH] = access_log.receive_call
        options = ServerOptions(
            *settings.grpc_bind,
            settings.max_message_bytes,
            settings.grpc_keepalive_s,
            find_tls(settings),
            self._turns,
        )
        return SERVERS[settings.transport](exchanges.open, options, services)

    def _create_scraper(self) -> MetricsScraper:
        return MetricsScraper(
            self.cache,
            self.ledger,
            interval_s=self._settings.metrics_interval_ms / 1000,
            failures=self.failures,
            # Without the API server, this is how an engine is seen to start anew.
            on_lost=self.knowledge.note_unreachable,
            samples=self.knowledge.samples,
            tls=self._engine_tls,
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
            priorities=self.knowledge.state.priorities,
            describe_silence=self._describe_silence,
            whole=self.knowledge.state.whole,
            group=self._group,
            keys=self.keys,
        )

    async def __aenter__(self) -> "Application":
        """Read the pods, and listen.

        Raises:
            SourceUnusable: the pods cannot be read.
            RosterInvalid: the file of API keys cannot be read.
            CertificatesInvalid: the files for TLS cannot be used.
            PortUnusable: a port cannot be opened.
        """
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                stack.push_async_callback(self._tracing.close)
            self.telemetry.start()
            stack.callback(self.telemetry.close)
            await self.keys.load()
            await stack.enter_async_context(self._source)
            await stack.enter_async_context(self._client)
            # What streams leave behind when the server stops has a last moment.
            await stack.enter_async_context(self._exchanges.releases)
            await stack.enter_async_context(self._exchanges.drains)
            if self._shared is not None:
                await stack.enter_async_context(self._shared)
            await stack.enter_async_context(self._exchanges.gate)
            await stack.enter_async_context(self._exchanges.wakes)
            await stack.enter_async_context(self._exchanges.priorities.questions)
            await stack.enter_async_context(self._tokenizers)
            await stack.enter_async_context(self._engines)
            if self._journal is not None:
                # Before the first request: with the pods that are known now, for others are gone.
                await self._journal.join()
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
            observe = self._note_lag, loop.stall_seconds.observe
            stack.enter_context(EventLoopWatch(*observe, self._turns.take_times))
            works = [self._source.watch(), self._lead(self._engines.run), self.keys.watch()]
            works += self._tidy_memory()
            if self._shared is not None:
                works.append(self._shared.run())
            if self._journal is not None:
                works.append(self._journal.run())
            if self._asks_engines:
                works.append(self._check.run())
            if self.failures.rules.asks:
                works.append(self._lead(self._exchanges.questions.run))
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

    def _note_lag(self, seconds: float) -> None:
        self.telemetry.metrics.event_loop.lag_seconds.observe(seconds)
        self._exchanges.leases.note_lag(seconds)

    def _tidy_memory(self) -> list[Coroutine[Any, Any, None]]:
        """Return what gives memory back to the system, and what looks for garbage."""

        def measure() -> int:
            return read_resident_bytes() - self.bodies.bytes

        garbage = GarbageSearches(lambda: len(self.telemetry.open), measure)
        return [FreedMemory(lambda: self.bodies.bytes).run(), garbage.run()]

    def _lead(self, work: Work) -> Coroutine[Any, Any, None]:
        """Return what one worker does for all, done while that is this one."""
        return work() if self._journal is None else work_while_leading(self._journal, work)

    def _describe_silence(self) -> list[str]:
        """Say of which models no ready pod, or none for a leg, has answered of late."""
        return describe_silence(
            self.cache.view,
            lambda pod: self._check.is_silent(pod) or self.failures.is_left_out(pod.uid),
        )

    def _count_reload(self, success: bool) -> None:
        self.telemetry.metrics.endpoints_reloads.labels("ok" if success else "broken").inc()

    def _count_keys_reload(self, success: bool) -> None:
        self.telemetry.metrics.users.keys_reloads.labels("ok" if success else "broken").inc()


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
