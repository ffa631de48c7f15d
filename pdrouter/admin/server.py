"""The HTTP port for operators: probes, metrics, models, and the state of things."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
from aiohttp import web

from pdrouter import __version__
from pdrouter.cluster.load import Ledger
from pdrouter.cluster.pods import Pod, format_address
from pdrouter.cluster.view import PodCache
from pdrouter.openai.errors import encode_error
from pdrouter.openai.models import encode_models
from pdrouter.telemetry.requests import RequestTelemetry, describe_request

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AdminServer:
    """Serves the admin port. Use `start` and `stop`.

    Attributes:
        address: `host:port` that it listens on, once started.
    """

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        telemetry: RequestTelemetry,
        settings: Mapping[str, Any],
        is_draining: Callable[[], bool],
    ) -> None:
        """Set up the routes.

        Args:
            cache: the pods.
            ledger: work in flight.
            telemetry: metrics and open requests.
            settings: what `/debug/state` shows of the settings, without secrets.
            is_draining: tells whether the process is about to end.
        """
        self._cache = cache
        self._ledger = ledger
        self._telemetry = telemetry
        self._settings = settings
        self._is_draining = is_draining
        self.address = ""
        app = web.Application(middlewares=[_answer_errors])
        app.router.add_get("/healthz", self._show_health)
        app.router.add_get("/readyz", self._show_readiness)
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/v1/models", self._show_models)
        app.router.add_get("/debug/state", self._show_state)
        app.router.add_get("/debug/decisions", self._show_decisions)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound = self._runner.addresses[0]
        self.address = format_address(bound[0], bound[1])

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _show_health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _show_readiness(self, request: web.Request) -> web.Response:
        del request
        if self._is_draining():
            return web.Response(status=503, text="draining\n")
        if not self._cache.synced:
            return web.Response(status=503, text="the pods are not known yet\n")
        return web.Response(text="ok\n")

    async def _show_metrics(self, request: web.Request) -> web.Response:
        del request
        page = await asyncio.to_thread(self._telemetry.metrics.render)
        return web.Response(body=page, headers={"content-type": _METRICS_TYPE})

    async def _show_models(self, request: web.Request) -> web.Response:
        del request
        return _json(encode_models(self._cache.view.names))

    async def _show_state(self, request: web.Request) -> web.Response:
        del request
        return _json(await asyncio.to_thread(self._render_state))

    async def _show_decisions(self, request: web.Request) -> web.Response:
        del request
        decisions = await asyncio.to_thread(self._telemetry.decisions.describe)
        return _json(msgspec.json.encode({"decisions": decisions}))

    def _render_state(self) -> bytes:
        state = {
            "version": __version__,
            "synced": self._cache.synced,
            "draining": self._is_draining(),
            "pods": [self._describe_pod(pod) for pod in self._cache.view.pods],
            "ledger": {uid: asdict(load) for uid, load in self._ledger.snapshot().items()},
            "requests": [
                describe_request(record) for record in list(self._telemetry.open.values())
            ],
            "settings": self._settings,
        }
        return msgspec.json.encode(state)

    def _describe_pod(self, pod: Pod) -> dict[str, Any]:
        return {
            "uid": pod.uid,
            "name": pod.name,
            "namespace": pod.namespace,
            "address": pod.address,
            "model": pod.model,
            "role": pod.role,
            "roleset": pod.roleset,
            "engine": pod.engine,
            "kv_connector": pod.kv_connector,
            "ready": pod.ready,
            "obstacle": pod.obstacle,
            **asdict(self._ledger.load(pod.uid)),
        }


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@web.middleware
async def _answer_errors(request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401 - aiohttp's own type is generic
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        return _json(encode_error(404, "unknown_path", "there is no such page"), 404)
    except web.HTTPMethodNotAllowed as error:
        answer = _json(encode_error(405, "method_not_allowed", "only GET is allowed here"), 405)
        answer.headers["allow"] = error.headers["allow"]
        return answer
    return response
