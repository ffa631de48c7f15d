"""Runs generation requests: the life of a prefill leg, a decode leg and a whole request."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from aiohttp import web

from pdrouter.tools.simulation.answers import AnswerForm
from pdrouter.tools.simulation.api_requests import Api, GenerationRequest
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.generation import Generation, generate
from pdrouter.tools.simulation.kept_responses import KeptResponses
from pdrouter.tools.simulation.leg_contracts import Fetch, Job, LegContracts
from pdrouter.tools.simulation.legs import SimulatedLeg
from pdrouter.tools.simulation.messages_answers import MessagesForm
from pdrouter.tools.simulation.openai_answers import ChatForm, CompletionsForm, GenerateForm
from pdrouter.tools.simulation.reception import Dropped, EngineCall
from pdrouter.tools.simulation.refusal import Refused, load_failed
from pdrouter.tools.simulation.responses_answers import ResponsesForm, name_response
from pdrouter.tools.simulation.rooms import RoomStore
from pdrouter.tools.simulation.running_ids import RunningIds
from pdrouter.tools.simulation.sglang_answers import SglangForm
from pdrouter.tools.simulation.transfer import TransferFailed

FORMS: Mapping[Api, AnswerForm] = {
    Api.CHAT: ChatForm(),
    Api.COMPLETIONS: CompletionsForm(),
    Api.MESSAGES: MessagesForm(),
    Api.RESPONSES: ResponsesForm(),
    Api.GENERATE: GenerateForm(),
    Api.SGLANG: SglangForm(),
}


class GenerationApi:
    """Serves the APIs that generate tokens."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: EngineMetrics,
        compute: Compute,
        contracts: LegContracts,
        rooms: RoomStore,
        *,
        kept: KeptResponses,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._compute = compute
        self._contracts = contracts
        self._rooms = rooms
        self._kept = kept
        self._ids = RunningIds(metrics)

    async def serve(self, call: EngineCall) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refused: The request is not acceptable, or its blocks could not be loaded.
            Dropped: A fault cuts the stream.
        """
        with ExitStack() as claims:
            try:
                job = self._contracts.check(call)
                if job.request.api is Api.RESPONSES:
                    self._kept.check(call.members, name_response(job.request_id))
                self._count_unexpected_role(call.leg, job.request)
                claims.enter_context(self._ids.claim(job.request_id))
            except Refused as refusal:
                await self._free_remote_blocks(call, refusal)
                raise
            if job.request.stream:
                return await self._stream(job)
            if job.request.api is Api.RESPONSES and call.members.get("background"):
                return web.json_response(self._begin(job))
            return web.json_response(await self._answer(job))

    def _begin(self, job: Job) -> object:
        """Make a response in the background; its request has been answered by then."""
        generation = generate(job.request, self._config, job.request_id, int(time.time()))
        queued = ResponsesForm().queued(generation)
        return self._kept.begin(job.call.members, queued, partial(self._answer, job))

    async def _free_remote_blocks(self, call: EngineCall, refusal: Refused) -> None:
        try:
            await self._contracts.free_refused(call, refusal)
        except TransferFailed:
            self._metrics.failed_releases.inc()

    def _count_unexpected_role(self, leg: SimulatedLeg, request: GenerationRequest) -> None:
        role = self._config.role
        asks_for_more = leg is not SimulatedLeg.PREFILL and request.limit != 1
        if (role == "decode" and leg is SimulatedLeg.PREFILL) or (
            role == "prefill" and asks_for_more
        ):
            self._metrics.unexpected_role.inc()

    @asynccontextmanager
    async def _prefilled(self, job: Job) -> AsyncIterator[Generation]:
        """Bring a request to its first token, and hold its slot.

        As in vLLM the blocks are asked for as soon as the scheduler has the request, before it
        gets to run, so that the lease does not end in the queue.
        """
        arrived = time.monotonic()
        generation = generate(job.request, self._config, job.request_id, int(time.time()))
        if job.load_media is not None:
            await job.load_media()
        if job.rooms:
            async with (
                self._rooms.prefill(job.rooms, job.request.digest),
                self._compute.prefilled(job.request.prompt_tokens, priority=job.request.priority),
            ):
                self._metrics.first_token_seconds.observe(time.monotonic() - arrived)
            yield generation
            return
        if job.fetch is not None:
            cached = await self._fetch(job.fetch, job.request)
            generation = replace(generation, cached_tokens=cached)
        async with self._compute.prefilled(
            job.request.prompt_tokens,
            cached=generation.cached_tokens,
            priority=job.request.priority,
        ):
            self._metrics.first_token_seconds.observe(time.monotonic() - arrived)
            if job.keep is not None:
                job.keep()
            computed = time.monotonic()
            yield generation
            self._metrics.note_answer(
                prompt_tokens=job.request.prompt_tokens,
                output_tokens=generation.completion_tokens,
                decode_s=time.monotonic() - computed,
            )

    async def _fetch(self, fetch: Fetch, request: GenerationRequest) -> int:
        started = time.monotonic()
        try:
            cached = await fetch(request)
        except TransferFailed:
            self._metrics.failed_transfers.inc()
            raise
        self._metrics.transfer_seconds.observe(time.monotonic() - started)
        return cached

    async def _answer(self, job: Job) -> object:
        form = FORMS[job.request.api]
        try:
            async with self._prefilled(job) as generation:
                for _ in generation.words[1:]:
                    await self._compute.step()
                self._metrics.generation_tokens.inc(generation.completion_tokens)
                if job.answer is not None:
                    return job.answer(form, generation)
                answer = form.plain(generation)
                self._keep(job, answer)
                return answer
        except TransferFailed as error:
            raise load_failed() from error

    def _keep(self, job: Job, answer: object) -> None:
        if job.request.api is Api.RESPONSES and isinstance(answer, dict):
            self._kept.keep(job.call.members, answer)

    async def _stream(self, job: Job) -> web.StreamResponse:
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
                self._keep(job, form.plain(generation))
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
