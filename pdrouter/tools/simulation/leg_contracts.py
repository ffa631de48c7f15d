"""What each wire asks of the legs of a request, and what an engine does with those that keep it."""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from pdrouter.tools.simulation.answers import AnswerForm
from pdrouter.tools.simulation.api_requests import Api, GenerationRequest, parse_generation
from pdrouter.tools.simulation.bootstrap import (
    check_path,
    check_rank,
    fetch_rooms,
    read_meeting,
    share_room,
)
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.context_handoff import (
    AUTH_HEADER,
    check_signature,
    continue_request,
    fetch_context,
    read_context,
    read_continuation,
)
from pdrouter.tools.simulation.encodings import MediaLoader, check_media, read_handles
from pdrouter.tools.simulation.generation import Generation
from pdrouter.tools.simulation.handle_issuer import HandleIssuer
from pdrouter.tools.simulation.legs import (
    SimulatedLeg,
    check_decode_leg,
    check_prefill_leg,
    check_prompt_count,
    check_transfer_members,
    disaggregated_params,
)
from pdrouter.tools.simulation.media_items import list_media
from pdrouter.tools.simulation.p2p_tier import (
    RANK_HEADER,
    P2pTier,
    check_roles,
    read_decoder,
    read_prefiller,
    read_source,
)
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.prompts import prefix_blocks
from pdrouter.tools.simulation.reception import EngineCall
from pdrouter.tools.simulation.refusal import ContractViolated, Refused
from pdrouter.tools.simulation.token_ids import check_token_ids
from pdrouter.tools.simulation.transfer import BlockFetcher
from pdrouter.tools.simulation.transfers import (
    TransferStore,
    fetch_transfer,
    free_transfer,
    read_mooncake,
    read_push,
    read_transfer_id,
)
from pdrouter.tools.simulation.turns import PRIORITY_HEADER, read_priority

Fetch: TypeAlias = Callable[[GenerationRequest], Awaitable[int]]
"""Waits for the blocks of a prompt, and says how many of its tokens they hold; raises
TransferFailed."""
Answer: TypeAlias = Callable[[AnswerForm, Generation], object]
"""Gives the answer of a prefill leg, and holds its blocks."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request that passed all checks.

    Attributes:
        call: Where it came from.
        request: What to generate.
        request_id: The id under which it runs, unique in the engine.
        fetch: Where the blocks of its prompt, or of its beginning, come from; None if all of it is
            computed here.
        rooms: Rooms in which a prefill leg waits for the other before it computes.
        answer: How a prefill leg is answered; None for as any request.
        load_media: Has what the media of its prompt are to the model; None if there are none.
        keep: Called once the blocks of its prompt are there, if others may ask for them.
    """

    call: EngineCall
    request: GenerationRequest
    request_id: str
    fetch: Fetch | None = None
    rooms: tuple[int, ...] = ()
    answer: Answer | None = None
    load_media: Callable[[], Awaitable[None]] | None = None
    keep: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class LegContracts:
    """Holds requests to the contract of the engine's wire."""

    config: EngineConfig
    issuer: HandleIssuer
    fetcher: BlockFetcher
    transfers: TransferStore
    tier: P2pTier
    media: MediaLoader
    peers: PeerClient

    def check(self, call: EngineCall) -> Job:
        """Return what is to be done for a request.

        Raises:
            Refused: It is not acceptable.
        """
        api = Api(call.http.path)
        check_transfer_members(call.members)
        by_rooms = self.config.kv_connector == "bootstrap"
        if call.leg is SimulatedLeg.PREFILL and not by_rooms:
            check_prefill_leg(api, call.members, self.config)
        request = parse_generation(api, call.members, self.config)
        header = call.http.headers.get(PRIORITY_HEADER)
        request = replace(request, priority=read_priority(call.members, header, self.config))
        if not by_rooms:
            check_prompt_count(call.leg, request.prompts)
        job = Job(call, request, _read_request_id(api, call))
        if api is Api.CHAT:
            job = self._check_media(job)
        if self.config.has_p2p_tier:
            job = self._check_tier(job)
        if call.leg is SimulatedLeg.WHOLE:
            return job
        return _CONTRACTS[self.config.kv_connector](self, job)

    async def free_refused(self, call: EngineCall, refusal: Refused) -> None:
        """Have the blocks freed that a decode leg will not fetch because it is refused.

        So does vLLM from 0.21 on, in what stands between its request model and its scheduler: what
        the request model refuses it does not look at, and what would break the engine core here
        has gone further.

        Raises:
            ContractViolated: The handle is not one that the engine could tell anybody of.
            TransferFailed: The prefill engine could not be told.
        """
        if (
            call.leg is not SimulatedLeg.DECODE
            or self.config.release == "old"
            or refusal.of_request_model
            or isinstance(refusal, ContractViolated)
        ):
            return
        if self.config.kv_connector == "nixl":
            await self.fetcher.release(check_decode_leg(call.members, self.config))
        elif self.config.kv_connector == "nixl-push":
            await free_transfer(self.peers, call.members["kv_transfer_params"])

    def _check_handle(self, job: Job) -> Job:
        """NIXL pull, and the legacy Neuron wire: a handle is fetched."""
        if job.call.leg is SimulatedLeg.PREFILL:
            return replace(job, answer=partial(self.issuer.issue, fault=job.call.fault))
        handle = check_decode_leg(job.call.members, self.config)
        if self.config.kv_connector == "nixl":
            check_token_ids(job.request, job.call.members["kv_transfer_params"], self.config)
        return replace(job, fetch=_whole(partial(self.fetcher.fetch, handle)))

    def _check_media(self, job: Job) -> Job:
        """Chats on all engines: media may have been encoded elsewhere."""
        members, leg = job.call.members, job.call.leg
        media = list_media(members)
        check_media(members, media, leg, self.config)
        if not media or leg is SimulatedLeg.DECODE:
            return job
        return replace(job, load_media=partial(self.media.load, media, read_handles(members)))

    def _check_tier(self, job: Job) -> Job:
        """All legs of an engine with a P2P tier: it keeps blocks, and may ask for some."""
        headers, params = job.call.http.headers, job.call.members.get("kv_transfer_params") or {}
        rank = self.tier.read_rank(headers.get(RANK_HEADER))
        blocks = prefix_blocks(job.call.members, self.config.block_size)
        job = replace(job, keep=partial(self.tier.keep, blocks, rank))
        check_roles(params, job.call.leg, self.config)
        source = read_source(params)
        if source is None:
            return job
        self.tier.check_source(source, rank)
        return replace(job, fetch=partial(self.tier.look_up, self.peers, source, blocks))

    def _check_offloading(self, job: Job) -> Job:
        """The P2P tier alone: blocks are asked for by an id, at the tier's own port."""
        params = job.call.members["kv_transfer_params"]
        rank = self.tier.read_rank(job.call.http.headers.get(RANK_HEADER))
        if job.call.leg is SimulatedLeg.PREFILL:
            key = self.tier.begin(read_decoder(params), rank)
            return replace(job, answer=partial(self.issuer.announce, transfer_id=key))
        check_token_ids(job.request, params, self.config)
        if job.request.n > 1:
            message = "several choices would share one transfer"
            raise ContractViolated("p2p_choices", 400, message, param="n")
        source = read_prefiller(params)
        return replace(job, fetch=partial(self.tier.pull, self.peers, source))

    def _check_transfer(self, job: Job) -> Job:
        """NIXL push and Mooncake: blocks are asked for by an id."""
        params = job.call.members["kv_transfer_params"]
        if job.call.leg is SimulatedLeg.PREFILL:
            transfer_id = read_transfer_id(params)
            self.transfers.begin(transfer_id)
            return replace(job, answer=partial(self.issuer.announce, transfer_id=transfer_id))
        check_token_ids(job.request, params, self.config)
        if self.config.kv_connector == "nixl-push":
            registration = read_push(params, self.config.scheme)
        else:
            registration = read_mooncake(params)
        return replace(job, fetch=_whole(partial(fetch_transfer, self.peers, registration)))

    def _check_meeting(self, job: Job) -> Job:
        """SGLang: the legs meet in rooms."""
        request = job.request
        old = self.config.release == "old"
        if old:
            check_path(request.api)
        meeting = read_meeting(job.call.members, request.prompts * request.n)
        if job.call.leg is SimulatedLeg.DECODE:
            meet = (
                share_room if old and request.n > 1 else partial(fetch_rooms, self.peers, meeting)
            )
            return replace(job, fetch=_whole(meet))
        check_rank(job.call.members, meeting, self.config.data_parallel_size)
        # It has the client's own limit, and computes one token all the same.
        return replace(job, request=replace(request, limit=1), rooms=meeting.rooms)

    def _check_context(self, job: Job) -> Job:
        """TensorRT-LLM: the generation leg brings what the context leg has said, or comes first."""
        params = disaggregated_params(job.call.members)
        if job.call.leg is SimulatedLeg.PREFILL:
            context = read_context(params)
            self.transfers.begin(str(context.request_id))
            return replace(
                job,
                rooms=(context.request_id,) if context.waits else (),
                answer=partial(self.issuer.hand_context, context=context),
            )
        header = job.call.http.headers.get(AUTH_HEADER)
        check_signature(params, header, self.config.auth_key)
        continuation = read_continuation(params)
        request = job.request
        if continuation.engine_id:
            request = continue_request(request, job.call.members)
        fetch = _whole(partial(fetch_context, self.peers, self.config.scheme, continuation))
        return replace(job, request=request, fetch=fetch)


def _read_request_id(api: Api, call: EngineCall) -> str:
    """Give the id that a request brings: for a response, a member of its body goes before."""
    given = call.members.get("request_id") if api is Api.RESPONSES else None
    return str(given or call.http.headers.get("x-request-id") or uuid.uuid4().hex)


def _whole(fetch: Callable[[str], Awaitable[None]]) -> Fetch:
    """Make one fetch of another that knows prompts by their identity, and brings all blocks.

    As in vLLM the last token of the prompt is computed all the same.
    """

    async def wait(request: GenerationRequest) -> int:
        await fetch(request.digest)
        return request.prompt_tokens - 1

    return wait


_CONTRACTS: Mapping[KvConnector, Callable[[LegContracts, Job], Job]] = {
    "nixl": LegContracts._check_handle,  # noqa: SLF001 - the class's own table
    "neuron-legacy": LegContracts._check_handle,  # noqa: SLF001
    "nixl-push": LegContracts._check_transfer,  # noqa: SLF001
    "mooncake": LegContracts._check_transfer,  # noqa: SLF001
    "offloading": LegContracts._check_offloading,  # noqa: SLF001
    "bootstrap": LegContracts._check_meeting,  # noqa: SLF001
    "trtllm": LegContracts._check_context,  # noqa: SLF001
}
