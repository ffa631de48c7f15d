"""The door of the engine: requests are recorded, suffer the faults in force, and get errors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler

from pdrouter.tools.simulation.api_requests import parse_members
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.faults import Fault, FaultBoard
from pdrouter.tools.simulation.legs import SimulatedLeg, leg_of
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.received_requests import RequestLog
from pdrouter.tools.simulation.refusal import ContractViolated, Refused

_CONTROL_PATHS = "/simulation/"
_OBSERVED_PATHS = frozenset({"/health", "/metrics", "/prometheus/metrics"})


@dataclass(frozen=True, slots=True)
class EngineCall:
    """A request to the engine's API, as its handler gets it.

    Attributes:
        http: The HTTP request.
        members: The decoded body.
        leg: The half of a request that it asks for.
        fault: How the answer must fail.
        refusal: Why the body could not be decoded; `members` is empty then.
    """

    http: web.Request
    members: Members
    leg: SimulatedLeg
    fault: Fault
    refusal: Refused | None = None


ApiHandler = Callable[[EngineCall], Awaitable[web.StreamResponse]]
_CALL = web.RequestKey("call", EngineCall)


class Dropped(Exception):
    """The connection of this request gets no other byte: a fault cuts it, or it is gone."""


def is_form(request: web.Request) -> bool:
    """Say whether a request's body is a form, which its handler has to read itself."""
    return request.content_type == "multipart/form-data"


def api_handler(handler: ApiHandler, *, forms: bool = False, bodiless: bool = False) -> Handler:
    """Make an HTTP handler of a handler of calls; the reception must stand before it.

    Args:
        handler: Answers calls.
        forms: Whether it reads forms, too.
        bodiless: Whether it needs no body.
    """

    async def handle(request: web.Request) -> web.StreamResponse:
        call = request[_CALL]
        if call.refusal is not None and not (bodiless or (forms and is_form(request))):
            raise call.refusal
        return await handler(call)

    return handle


class Reception:
    """Stands before all handlers of an engine."""

    def __init__(
        self, config: EngineConfig, metrics: EngineMetrics, faults: FaultBoard, log: RequestLog
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._faults = faults
        self._log = log
        self._busy: set[asyncio.Transport | None] = set()

    def is_idle(self, transport: asyncio.Transport | None) -> bool:
        """Say whether no request of this connection is being answered."""
        return transport not in self._busy

    @web.middleware
    async def receive(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request, whatever happens.

        A client that leaves cancels this; that is counted, and the work ends.
        """
        transport = request.transport
        self._busy.add(transport)
        try:
            if request.path.startswith(_CONTROL_PATHS) or request.path in _OBSERVED_PATHS:
                fault = self._faults.take(request.path, is_api_call=False)
                return await self._respond(request, handler, fault)
            return await self._receive_api(request, handler)
        except Dropped:
            return _cut(request)
        finally:
            self._busy.discard(transport)

    async def _receive_api(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.read()
        members, refusal = _decode(request, body)
        leg = leg_of(members, self._config)
        headers = {
            name.lower(): ", ".join(request.headers.getall(name)) for name in request.headers
        }
        number = self._log.add(request.method, request.raw_path, headers, body, leg)
        fault = self._faults.take(
            request.path, is_api_call=request.method == "POST", members=members, leg=leg
        )
        request[_CALL] = EngineCall(request, members, leg, fault, refusal)
        try:
            response = await self._respond(request, handler, fault)
        except Dropped:
            self._log.settle(number, "dropped")
            raise
        except asyncio.CancelledError:
            self._note_abort(number)
            raise
        except ConnectionResetError as error:
            self._note_abort(number)
            raise Dropped from error
        self._log.settle(number, "answered", response.status)
        return response

    def _note_abort(self, number: int) -> None:
        self._metrics.aborted_requests.inc()
        self._log.settle(number, "aborted")

    async def _respond(
        self, request: web.Request, handler: Handler, fault: Fault
    ) -> web.StreamResponse:
        try:
            await _suffer(fault)
            return await handler(request)
        except Refused as error:
            if isinstance(error, ContractViolated):
                self._metrics.contract_violations.labels(error.reason).inc()
            headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
            return web.json_response(
                error.envelope(flat=self._config.engine != "vllm"),
                status=error.status,
                headers=headers,
            )
        except web.HTTPException as error:
            return _framework_error(error)


def _decode(request: web.Request, body: bytes) -> tuple[Members, Refused | None]:
    try:
        return parse_members(body, request.content_type), None
    except Refused as error:
        return {}, error


async def _suffer(fault: Fault) -> None:
    if fault.slow_s:
        await asyncio.sleep(fault.slow_s)
    if fault.hang:
        await asyncio.Event().wait()
    if fault.drop:
        raise Dropped
    if fault.status is not None:
        raise Refused(fault.status, f"Simulated fault: status {fault.status}")


def _cut(request: web.Request) -> web.Response:
    """Abort the connection; aiohttp then has no one to send the answer to."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _framework_error(error: web.HTTPException) -> web.Response:
    """Spell an unknown path or a wrong method as vLLM's web framework does."""
    return web.json_response({"detail": error.reason}, status=error.status)
