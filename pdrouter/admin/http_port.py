"""An HTTP port with pages to read: how it listens, and how it says that something is not there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from pdrouter.cluster.pods import format_address
from pdrouter.openai.errors import encode_error

log = logging.getLogger(__name__)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PROBES = frozenset({"/healthz", "/readyz"})
_PAGES_AT_ONCE = 16
"""Pages that are made or sent at the same time, probes aside; who comes then gets 503."""
_IDLE_S = 75.0
"""Seconds for which a connection may ask for nothing."""
_SEND_S = 30.0
"""Seconds in which a page has to be read."""

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpPort:
    """Serves pages. Use one of the `start` methods, then `stop`.

    Attributes:
        address: `host:port` or the path of the socket that it listens on, once started.
        pages: pages that are made or sent now.
    """

    def __init__(self, pages: Mapping[str, Page]) -> None:
        """Set up the pages.

        Args:
            pages: what answers GET, by path.
        """
        self.address = ""
        self.pages = 0
        app = web.Application(middlewares=[self._take_turns, _answer_errors])
        for path, page in pages.items():
            app.router.add_get(path, page)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_S
        )

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        bound = self._runner.addresses[0]
        self.address = format_address(bound[0], bound[1])

    async def start_at_socket(self, path: Path) -> None:
        """Listen on a Unix socket.

        Raises:
            OSError: it cannot be made.
        """
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()
        self.address = str(path)

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    @web.middleware
    async def _take_turns(self, request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401 - aiohttp's own type is generic
        """Let so many pages be made and sent at a time, and each for so long."""
        if request.path in _PROBES:
            probe: web.StreamResponse = await handler(request)
            return probe
        if self.pages >= _PAGES_AT_ONCE:
            body = encode_error(503, "busy", "too many pages are asked for at once")
            return answer_json(body, 503)
        self.pages += 1
        try:
            response: web.StreamResponse = await handler(request)
            await _send(request, response)
        finally:
            self.pages -= 1
        return response


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    """Send a page; who does not read it in time is cut off, and who has left gets nothing."""
    try:
        async with asyncio.timeout(_SEND_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError as error:
        log.debug("page %s: who has asked for it has left: %s", request.path, error)


def answer_json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


def answer_metrics(page: bytes) -> web.Response:
    """Return an answer that is a page of metrics in Prometheus' text format."""
    return web.Response(body=page, headers={"content-type": METRICS_TYPE})


@web.middleware
async def _answer_errors(request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401 - aiohttp's own type is generic
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPNotFound:
        return answer_json(encode_error(404, "unknown_path", "there is no such page"), 404)
    except web.HTTPMethodNotAllowed as error:
        body = encode_error(405, "method_not_allowed", "only GET is allowed here")
        answer = answer_json(body, 405)
        answer.headers["allow"] = error.headers["allow"]
        return answer
    return response
