"""One simulated engine: an HTTP server that behaves as a strict vLLM does towards a router."""

import asyncio
import math
import socket
import ssl
import time
from contextlib import AsyncExitStack, ExitStack
from typing import Self

from aiohttp import web

from pdrouter.tools.simulation.answers import MADE_UP
from pdrouter.tools.simulation.api_requests import Api
from pdrouter.tools.simulation.bootstrap import BootstrapServer
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.control_api import ControlApi
from pdrouter.tools.simulation.encode_api import EncodeApi
from pdrouter.tools.simulation.encodings import EncodingsApi, MediaLoader
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.faults import Fault, FaultBoard
from pdrouter.tools.simulation.generation_api import GenerationApi
from pdrouter.tools.simulation.handle_issuer import HandleIssuer
from pdrouter.tools.simulation.kept_responses import KeptResponses
from pdrouter.tools.simulation.kv_handles import HandleStore
from pdrouter.tools.simulation.leg_contracts import LegContracts
from pdrouter.tools.simulation.media_api import MEDIA_PATHS, MediaApi
from pdrouter.tools.simulation.node_address import join_address, reachable_host
from pdrouter.tools.simulation.p2p_tier import P2pTier
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.received_requests import ReceivedRequest, RequestLog
from pdrouter.tools.simulation.reception import Reception, api_handler
from pdrouter.tools.simulation.rooms import RoomStore
from pdrouter.tools.simulation.single_pod_api import ANSWERS, SinglePodApi
from pdrouter.tools.simulation.transfer import BlockFetcher
from pdrouter.tools.simulation.transfers import TransferApi, TransferStore

_STOP_GRACE_S = 0.2
_NO_BODY_LIMIT = 0
_BACKLOG = 1_024
_TURNS_TO_ACCEPT = 5
_TRIES_FOR_PORTS = 20


class SimulatedEngine:
    """An engine; as an async context manager it runs inside the block.

    It can be started again after it was stopped: at the same address, without its blocks, while
    what it has counted stands.

    Attributes:
        config: Its settings.
        faults: The faults it shows.
    """

    def __init__(self, config: EngineConfig, *faults: Fault) -> None:
        """Prepare an engine.

        Args:
            config: Its settings.
            faults: What it does wrong from the start.
        """
        self.config = config
        self.faults = FaultBoard(*faults)
        self._metrics = EngineMetrics(config)
        self._log = RequestLog(config.request_log_size)
        self._reception = Reception(config, self._metrics, self.faults, self._log)
        self._handles = HandleStore(
            config.engine_id, config.kv_lease_s, self._metrics.expired_handles.inc
        )
        self._rooms = RoomStore(self._metrics, config.peer_timeout_s)
        self._transfers = TransferStore(
            config.engine_id, config.kv_lease_s, self._metrics.expired_handles.inc
        )
        self._encodings = HandleStore(config.engine_id, config.kv_lease_s, lambda: None)
        self._kept = KeptResponses()
        self._transfer_api = TransferApi(config.engine_id, self._transfers)
        self._compute = Compute(config, self._metrics)
        self._metrics.watch_load(
            running=lambda: self._compute.running,
            waiting=lambda: self._compute.waiting,
            cache_usage=self._cache_usage,
            handles_outstanding=self._count_outstanding,
            rooms_open=lambda: self._rooms.open,
            encodings_outstanding=lambda: self._encodings.outstanding(time.monotonic()),
        )
        self._host = reachable_host(config.host)
        self._port = config.port
        self._bootstrap_port = config.bootstrap_port
        self._tier = P2pTier(
            config, self._metrics, self._transfers, self._host, lambda: self._bootstrap_port
        )
        self._encode_api = EncodeApi(
            config,
            self._metrics,
            self._compute,
            self._encodings,
            lambda: (config.side_channel_host or self._host, self._port),
        )
        self._issuer: HandleIssuer | None = None
        self._runner: web.AppRunner | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            OSError: The address cannot be bound.
        """
        async with AsyncExitStack() as resources:
            listener = resources.enter_context(_listen(self.config.host, self._port))
            self._port = listener.getsockname()[1]
            fetcher = await resources.enter_async_context(
                BlockFetcher(self._host, self.config.revision, self.config.scheme)
            )
            peers = await resources.enter_async_context(PeerClient(self.config.peer_timeout_s))
            self._runner = await self._serve(
                resources, self._application(fetcher, peers), listener, _create_tls(self.config)
            )
            if self.config.has_bootstrap_server:
                await self._start_bootstrap(resources)
            self._resources = resources.pop_all()

    async def _start_bootstrap(self, resources: AsyncExitStack) -> None:
        ranks = self.config.data_parallel_size if self.config.has_p2p_tier else 1
        listeners = _listen_in_a_row(self.config.host, self._bootstrap_port, ranks)
        for listener in listeners:
            resources.enter_context(listener)
        self._bootstrap_port = listeners[0].getsockname()[1]
        for rank, listener in enumerate(listeners):
            await self._serve(resources, self._bootstrap_application(rank), listener)

    async def _serve(
        self,
        resources: AsyncExitStack,
        application: web.Application,
        listener: socket.socket,
        tls: ssl.SSLContext | None = None,
    ) -> web.AppRunner:
        runner = web.AppRunner(
            application,
            handler_cancellation=True,
            shutdown_timeout=_STOP_GRACE_S,
            keepalive_timeout=self.config.keepalive_timeout_s,
            access_log=None,
        )
        resources.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=tls, backlog=_BACKLOG).start()
        resources.push_async_callback(_stop_accepting, listener)
        return runner

    async def stop(self) -> None:
        """Close all connections, cutting off what still runs; blocks that are held are lost."""
        await self._resources.aclose()
        self._handles.lose()
        self._transfers.lose()
        self._encodings.lose()
        self._tier.lose()
        self._kept.lose()

    @property
    def host(self) -> str:
        """The host at which routers and other engines reach it."""
        return self._host

    @property
    def port(self) -> int:
        """The port it listens on; 0 before the start if any free one will do."""
        return self._port

    @property
    def bootstrap_port(self) -> int:
        """The port at which engines meet, if it is not the API's; 0 before the start for any."""
        return self._bootstrap_port

    @property
    def address(self) -> str:
        """Host and port as one text, an IPv6 host in brackets."""
        return join_address(self._host, self._port)

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The last requests to its API, in order of arrival."""
        return tuple(self._log)

    def end_leases(self) -> None:
        """End the leases of all blocks that nobody has fetched, as time would."""
        for store in (self._handles, self._transfers, self._encodings):
            store.outstanding(math.inf)

    def count(self, name: str) -> float:
        """Give the value of a metric, added up over its labels.

        Args:
            name: The name as `/metrics` has it, such as `simulation:aborted_requests_total`.
        """
        return self._metrics.value(name)

    @property
    def violations(self) -> dict[str, float]:
        """How often each rule of the contract was broken."""
        return self._metrics.split_value("simulation:contract_violations_total", "reason")

    def close_idle_connections(self) -> None:
        """Close every connection that has no request, as a server's keep-alive timeout does."""
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None and self._reception.is_idle(connection.transport):
                connection.transport.close()

    def _bootstrap_application(self, rank: int) -> web.Application:
        if self.config.has_p2p_tier:
            return self._tier.application(rank)
        application = web.Application()
        if self.config.kv_connector == "mooncake":
            application.add_routes(self._transfer_api.routes())
        else:
            application.add_routes(BootstrapServer(self._rooms).routes())
        return application

    def _application(self, fetcher: BlockFetcher, peers: PeerClient) -> web.Application:
        if self._issuer is None:
            # It outlives a restart: blocks of now must not pass for blocks of then.
            host = self.config.side_channel_host or self._host
            self._issuer = HandleIssuer(
                self.config, self._handles, self._transfers, host, self._port
            )
        media_loader = MediaLoader(self.config, self._metrics, peers, self._host)
        contracts = LegContracts(
            self.config, self._issuer, fetcher, self._transfers, self._tier, media_loader, peers
        )
        generation = GenerationApi(
            self.config, self._metrics, self._compute, contracts, self._rooms, kept=self._kept
        )
        single_pod = SinglePodApi(self.config, self._compute)
        media = MediaApi(self.config, self._compute)
        control = ControlApi(
            config=self.config,
            metrics=self._metrics,
            handles=self._handles,
            faults=self.faults,
            log=self._log,
            close_idle_connections=self.close_idle_connections,
        )
        application = web.Application(
            middlewares=[self._reception.receive], client_max_size=_NO_BODY_LIMIT
        )
        application.on_response_prepare.append(_say_what_it_is)
        application.add_routes(control.routes())
        if self.config.kv_connector in ("nixl-push", "trtllm"):
            application.add_routes(self._transfer_api.routes())
        if self.config.kv_connector == "trtllm":
            application.add_routes(BootstrapServer(self._rooms).routes())
            application.add_routes([web.get("/server_info", self._show_server_info)])
        serve = api_handler(generation.serve)
        if self.config.role == "encode":
            serve = api_handler(self._encode_api.serve)
            application.add_routes(EncodingsApi(self.config, self._encodings).routes())
        application.add_routes(
            [
                web.post(path, serve)
                for path in Api
                if path is not Api.SGLANG or self.config.engine == "sglang"
            ]
        )
        application.add_routes(self._kept.routes())
        application.add_routes([web.post(path, api_handler(single_pod.serve)) for path in ANSWERS])
        serve_media = api_handler(media.serve, forms=True)
        application.add_routes([web.post(path, serve_media) for path in MEDIA_PATHS])
        return application

    async def _show_server_info(self, _: web.Request) -> web.Response:
        params = {"ctx_info_endpoint": [self.address], "ctx_dp_rank": 0}
        return web.json_response({"disaggregated_params": params})

    def _count_outstanding(self) -> int:
        now = time.monotonic()
        return self._handles.outstanding(now) + self._transfers.outstanding(now)

    def _cache_usage(self) -> float:
        now = time.monotonic()
        held = self._handles.held_tokens(now) + self._transfers.held_tokens(now)
        tokens = self._compute.running_tokens + held
        return min(1.0, tokens / (self.config.block_size * self.config.kv_blocks))


def _create_tls(config: EngineConfig) -> ssl.SSLContext | None:
    if not config.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.tls_certificate, config.tls_key, password="")
    return context


async def _stop_accepting(listener: socket.socket) -> None:
    """Let the event loop finish what it is accepting: it loses what a closed server accepts."""
    asyncio.get_running_loop().remove_reader(listener)
    for _ in range(_TURNS_TO_ACCEPT):
        await asyncio.sleep(0)


async def _say_what_it_is(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-simulated-engine"] = MADE_UP


def _listen_in_a_row(host: str, port: int, count: int) -> list[socket.socket]:
    """Listen at so many ports, one after the other; if any will do, the first may be any.

    Raises:
        OSError: They cannot be bound.
    """
    for tries_left in reversed(range(1 if port else _TRIES_FOR_PORTS)):
        with ExitStack() as opened:
            try:
                first = opened.enter_context(_listen(host, port))
                following = range(first.getsockname()[1] + 1, first.getsockname()[1] + count)
                others = [opened.enter_context(_listen(host, each)) for each in following]
            except OSError:
                if not tries_left:
                    raise
                continue
            opened.pop_all()
            return [first, *others]
    raise AssertionError("the last try has raised")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
