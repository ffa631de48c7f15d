"""The paths around the model: health, metrics, models, the KV side channel, faults."""

import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from pdrouter.tools.simulation.api_requests import parse_members
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.faults import FaultBoard, parse_faults
from pdrouter.tools.simulation.kv_handles import FETCH_STATUS, FetchResult, HandleStore
from pdrouter.tools.simulation.received_requests import RequestLog
from pdrouter.tools.simulation.refusal import malformed
from pdrouter.tools.simulation.transfer import FETCH_PATH, RELEASE_PATH

_VERSION = "0.33.0+simulated"
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_VIOLATIONS: frozenset[FetchResult] = frozenset(
    {"unknown", "reused", "released", "altered", "wrong_engine", "other_revision"}
)


class ControlApi:
    """Serves what operators, other engines and tests ask of an engine."""

    def __init__(
        self,
        *,
        config: EngineConfig,
        metrics: EngineMetrics,
        handles: HandleStore,
        faults: FaultBoard,
        log: RequestLog,
        close_idle_connections: Callable[[], None],
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._handles = handles
        self._faults = faults
        self._log = log
        self._close_idle_connections = close_idle_connections
        self._started = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        """Give all paths and what answers them."""
        return [
            web.get("/health", self._health),
            *self._own_routes(),
            web.get("/metrics", self._show_metrics),
            web.get("/prometheus/metrics", self._show_metrics),
            web.get("/v1/models", self._models),
            web.post(FETCH_PATH, self._fetch),
            web.post(RELEASE_PATH, self._release),
            web.get("/simulation/faults", self._show_faults),
            web.put("/simulation/faults", self._set_faults),
            web.delete("/simulation/faults", self._clear_faults),
            web.get("/simulation/requests", self._show_requests),
            web.delete("/simulation/requests", self._clear_requests),
            web.post("/simulation/close-idle", self._close_idle),
        ]

    def _own_routes(self) -> list[web.RouteDef]:
        """Give the paths by which one kind of engine is told from another."""
        if self._config.engine == "sglang":
            return [web.get("/server_info", self._server_info)]
        return [web.get("/version", self._version)]

    async def _server_info(self, _: web.Request) -> web.Response:
        config = self._config
        return web.json_response(
            {
                "version": _VERSION,
                "model_path": config.base_model,
                "served_model_name": config.base_model,
                "disaggregation_mode": config.role,
                "dp_size": config.data_parallel_size,
                "max_total_num_tokens": config.block_size * config.kv_blocks,
            }
        )

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": _VERSION})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.exposition(), headers={"content-type": _METRICS_TYPE}
        )

    async def _models(self, _: web.Request) -> web.Response:
        base = self._config.base_model
        cards: list[dict[str, object]] = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": _OWNERS[self._config.engine],
                "root": base,
                "parent": None if name == base else base,
                "max_model_len": self._config.max_model_len,
                "permission": [],
            }
            for name in self._config.models
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _fetch(self, request: web.Request) -> web.Response:
        asked = parse_members(await request.read(), request.content_type)
        handle, digest = asked.get("handle"), asked.get("prompt_digest")
        if not isinstance(handle, dict) or not isinstance(digest, str):
            raise malformed("handle must be an object and prompt_digest a string")
        result: FetchResult = "other_revision"
        # As vLLM does, at the handshake: the blocks stay where they are.
        if asked.get("revision", "") == self._config.revision:
            result = self._handles.fetch(handle, digest, time.monotonic())
        self._metrics.kv_fetches.labels(result).inc()
        if result == "mismatch":
            self._metrics.prompt_mismatches.inc()
        return self._tell(result)

    async def _release(self, request: web.Request) -> web.Response:
        handle = parse_members(await request.read(), request.content_type).get("handle")
        if not isinstance(handle, dict):
            raise malformed("handle must be an object")
        result = self._handles.release(handle, time.monotonic())
        self._metrics.kv_releases.labels(result).inc()
        return self._tell(result)

    def _tell(self, result: FetchResult) -> web.Response:
        if result == "expired":
            self._metrics.late_fetches.inc()
        elif result in _VIOLATIONS:
            self._metrics.contract_violations.labels(f"handle_{result}").inc()
        return web.json_response({"result": result}, status=FETCH_STATUS[result])

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(self._faults.current), content_type="application/json"
        )

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            faults = parse_faults(await request.read())
        except msgspec.DecodeError as error:
            raise malformed(str(error)) from error
        self._faults.set(*faults)
        return await self._show_faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self._show_faults(request)

    async def _show_requests(self, _: web.Request) -> web.Response:
        return web.json_response([record.as_json() for record in self._log])

    async def _clear_requests(self, _: web.Request) -> web.Response:
        self._log.clear()
        return web.json_response([])

    async def _close_idle(self, _: web.Request) -> web.Response:
        self._close_idle_connections()
        return web.Response()
