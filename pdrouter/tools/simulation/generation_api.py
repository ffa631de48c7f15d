"""Runs generation requests: the life of a prefill leg, a decode leg and a whole request."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from pdrouter.tools.simulation.answers import AnswerForm
from pdrouter.tools.simulation.api_requests import Api, GenerationRequest, parse_generation
from pdrouter.tools.simulation.bootstrap import Meeting, fetch_rooms, read_meeting
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.generation import Generation, generate
from pdrouter.tools.simulation.handle_issuer import HandleIssuer
from pdrouter.tools.simulation.legs import (
    Handle,
    SimulatedLeg,
    check_decode_leg,
    check_prefill_leg,
    check_prompt_count,
    check_transfer_members,
)
from pdrouter.tools.simulation.messages_answers import MessagesForm
from pdrouter.tools.simulation.openai_answers import ChatForm, CompletionsForm, GenerateForm
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.reception import Dropped, EngineCall
from pdrouter.tools.simulation.refusal import Refused, load_failed
from pdrouter.tools.simulation.responses_answers import ResponsesForm
from pdrouter.tools.simulation.rooms import RoomStore
from pdrouter.tools.simulation.transfer import BlockFetcher, TransferFailed
from pdrouter.tools.simulation.transfers import (
    Registration,
    TransferStore,
    fetch_transfer,
    read_mooncake,
    read_push,
    read_transfer_id,
)

FORMS: Mapping[Api, AnswerForm] = {
    Api.CHAT: ChatForm(),
    Api.COMPLETIONS: CompletionsForm(),
    Api.MESSAGES: MessagesForm(),
    Api.RESPONSES: ResponsesForm(),
    Api.GENERATE: GenerateForm(),
}


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed all checks.

    Attributes:
        call: Where it came from.
        request: What to generate.
        request_id: The id under which it runs, unique in the engine.
        remote: The handle whose blocks to fetch first, on a decode leg.
        meeting: Where an SGLang's legs meet.
        registration: Where to ask for blocks by an id, on a decode leg.
        transfer_id: The id by which they are asked for, on a prefill leg.
    """

    call: EngineCall
    request: GenerationRequest
    request_id: str
    remote: Handle | None = None
    meeting: Meeting | None = None
    registration: Registration | None = None
    transfer_id: str = ""

    @property
    def waits(self) -> bool:
        """Whether its prompt is computed elsewhere."""
        return any(each is not None for each in (self.remote, self.registration, self.meeting))


class GenerationApi:
    """Serves the APIs that generate tokens."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: EngineMetrics,
        compute: Compute,
        fetcher: BlockFetcher,
        issuer: HandleIssuer,
        *,
        rooms: RoomStore,
        transfers: TransferStore,
        peers: PeerClient,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._compute = compute
        self._fetcher = fetcher
        self._issuer = issuer
        self._rooms = rooms
        self._transfers = transfers
        self._peers = peers
        self._running_ids: set[str] = set()

    async def serve(self, call: EngineCall) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refused: The request is not acceptable, or its blocks could not be loaded.
            Dropped: A fault cuts the stream.
        """
        job = self._check(call)
        with self._claim_id(job.request_id):
            if job.request.stream:
                return await self._stream(job)
            return web.json_response(await self._answer(job))

    def _check(self, call: EngineCall) -> _Job:
        api = Api(call.http.path)
        if self._config.kv_connector == "bootstrap":
            return self._check_meeting(api, call)
        check_transfer_members(call.members)
        if call.leg is SimulatedLeg.PREFILL:
            check_prefill_leg(api, call.members, self._config)
        request = parse_generation(api, call.members, self._config)
        check_prompt_count(call.leg, request.prompts)
        self._count_unexpected_role(call.leg, request)
        request_id = call.http.headers.get("x-request-id") or uuid.uuid4().hex
        job = _Job(call, request, request_id)
        if self._config.kv_connector in ("nixl-push", "mooncake"):
            return self._check_transfer(job)
        if call.leg is SimulatedLeg.DECODE:
            return replace(job, remote=check_decode_leg(call.members, self._config))
        return job

    def _check_transfer(self, job: _Job) -> _Job:
        params = job.call.members.get("kv_transfer_params") or {}
        if job.call.leg is SimulatedLeg.PREFILL:
            transfer_id = read_transfer_id(params)
            self._transfers.begin(transfer_id)
            return replace(job, transfer_id=transfer_id)
        if job.call.leg is SimulatedLeg.DECODE:
            read = read_push if self._config.kv_connector == "nixl-push" else read_mooncake
            return replace(job, registration=read(params))
        return job

    def _check_meeting(self, api: Api, call: EngineCall) -> _Job:
        request = parse_generation(api, call.members, self._config)
        meeting = read_meeting(call.members, request.prompts * request.n)
        if call.leg is SimulatedLeg.PREFILL:
            # It has the client's own limit, and computes one token all the same.
            request = replace(request, limit=1)
        request_id = call.http.headers.get("x-request-id") or uuid.uuid4().hex
        return _Job(call, request, request_id, meeting=meeting)

    def _count_unexpected_role(self, leg: SimulatedLeg, request: GenerationRequest) -> None:
        role = self._config.role
        asks_for_more = leg is not SimulatedLeg.PREFILL and request.limit != 1
        if (role == "decode" and leg is SimulatedLeg.PREFILL) or (
            role == "prefill" and asks_for_more
        ):
            self._metrics.unexpected_role.inc()

    @contextmanager
    def _claim_id(self, request_id: str) -> Iterator[None]:
        if request_id in self._running_ids:
            self._metrics.duplicate_request_ids.inc()
            raise Refused(400, f"Request id {request_id} already running.")
        self._running_ids.add(request_id)
        try:
            yield
        finally:
            self._running_ids.remove(request_id)

    @asynccontextmanager
    async def _prefilled(self, job: _Job) -> AsyncIterator[Generation]:
        """Bring a request to its first token, and hold its slot.

        As in vLLM the blocks are asked for as soon as the scheduler has the request, before it
        gets to run, so that the lease does not end in the queue.
        """
        arrived = time.monotonic()
        generation = generate(job.request, self._config, job.request_id, int(time.time()))
        if job.meeting is not None and job.call.leg is SimulatedLeg.PREFILL:
            async with (
                self._rooms.prefill(job.meeting.rooms, job.request.digest),
                self._compute.prefilled(job.request.prompt_tokens),
            ):
                self._metrics.first_token_seconds.observe(time.monotonic() - arrived)
            yield generation
            return
        if job.waits:
            await self._fetch(job)
            generation = replace(generation, cached_tokens=job.request.prompt_tokens - 1)
        async with self._compute.prefilled(
            job.request.prompt_tokens, cached=generation.cached_tokens
        ):
            self._metrics.first_token_seconds.observe(time.monotonic() - arrived)
            yield generation

    async def _fetch(self, job: _Job) -> None:
        started = time.monotonic()
        try:
            if job.meeting is not None:
                await fetch_rooms(self._peers, job.meeting, job.request.digest)
            elif job.registration is not None:
                await fetch_transfer(self._peers, job.registration, job.request.digest)
            elif job.remote is not None:
                await self._fetcher.fetch(job.remote, job.request.digest)
        except TransferFailed:
            self._metrics.failed_transfers.inc()
            raise
        self._metrics.transfer_seconds.observe(time.monotonic() - started)

    async def _answer(self, job: _Job) -> dict[str, object]:
        form = FORMS[job.request.api]
        try:
            async with self._prefilled(job) as generation:
                for _ in generation.words[1:]:
                    await self._compute.step()
                self._metrics.generation_tokens.inc(generation.completion_tokens)
                if job.transfer_id:
                    return self._issuer.announce(form, generation, job.transfer_id)
                if job.call.leg is SimulatedLeg.PREFILL and job.meeting is None:
                    return self._issuer.issue(form, generation, job.call.fault)
                return form.plain(generation)
        except TransferFailed as error:
            raise load_failed() from error

    async def _stream(self, job: _Job) -> web.StreamResponse:
        form = FORMS[job.request.api]
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(job.call.http)
        if job.call.fault.hang_after_head:
            await asyncio.Event().wait()
        if job.call.fault.drop_after_tokens == 0 and job.call.leg is SimulatedLeg.PREFILL:
            raise Dropped
        try:
            async with self._prefilled(job) as generation:
                await self._write_tokens(response, form, generation, job.call)
        except TransferFailed:
            await response.write(b"".join(form.failure(load_failed().envelope())))
        return response

    async def _write_tokens(
        self,
        response: web.StreamResponse,
        form: AnswerForm,
        generation: Generation,
        call: EngineCall,
    ) -> None:
        await response.write(b"".join(form.opening(generation)))
        for index in range(len(generation.words)):
            if index == call.fault.drop_after_tokens:
                raise Dropped
            if index:
                await self._compute.step()
            await response.write(b"".join(form.token(generation, index)))
            self._metrics.generation_tokens.inc(generation.choices)
        await response.write(b"".join(form.closing(generation)))
