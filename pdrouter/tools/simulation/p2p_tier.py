"""vLLM's P2P tier: engines give each other blocks out of main memory, each at a port of its own.

Source: vLLM `docs/features/kv_offloading_usage.md`, `v1/kv_offload/tiering/p2p/manager.py` and
`session/client.py`; llm-d `connector_p2p.go`. It is the whole wire of an engine with the
OffloadingConnector, and stands beside NIXL's where an engine has both (MultiConnector):

* `remote_decoder {kv_request_id}` has a prefill leg's blocks held for whoever fetches that id;
* `remote_prefiller {kv_request_id, remote_host, remote_port}` has a decode leg fetch them. Either
  leg may come first. Nobody tells the decode engine that the other has failed, or that nobody is
  there: it waits until its load deadline is over, and then computes the prompt itself. So it does
  at once if it comes for blocks whose lease has ended;
* `remote_kv_source {kv_request_id, remote_host, remote_port}` has a leg ask any other engine what
  it has of the prompt's beginning, under an id of its own. What is not there is a miss. It goes
  with `remote_decoder`, or alone with a request that has no other leg.

Each data-parallel rank has its port, one after the other, and its blocks: what is asked of another
rank is asked in vain. Where the sources are silent, or an engine would only be slow without a word,
this one refuses: an id used twice, a half-filled member, a member that is not the tier's, several
choices that would share one transfer, a rank that is left to the engine so that nobody can know its
port.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from yarl import URL

from pdrouter.tools.simulation.api_requests import GenerationRequest
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.legs import Handle, SimulatedLeg
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.refusal import ContractViolated
from pdrouter.tools.simulation.transfer import TransferFailed
from pdrouter.tools.simulation.transfers import TransferStore

FETCH_PATH = "/simulation/p2p/fetch"
"""Where the tier gives the blocks of a prefill leg; it stands in for a FetchMsg."""
LOOKUP_PATH = "/simulation/p2p/lookup"
"""Where it says what it has of a prompt; it stands in for a LookupMsg."""
RANK_HEADER = "x-data-parallel-rank"

_DECODER, _PREFILLER, _SOURCE = "remote_decoder", "remote_prefiller", "remote_kv_source"
_ROLES = frozenset({_DECODER, _PREFILLER, _SOURCE})
_OTHER_MEMBERS = frozenset({"prompt_token_ids", "max_offload_tokens"})
_LOAD_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """An engine that is asked for blocks.

    Attributes:
        kv_request_id: The id of the question.
        host: Host of its tier.
        port: Port of its tier.
    """

    kv_request_id: str
    host: str
    port: int

    def url(self, path: str) -> URL:
        """Return where it answers."""
        return URL.build(scheme="http", host=self.host, port=self.port, path=path)


def check_roles(params: Handle, leg: SimulatedLeg, config: EngineConfig) -> None:
    """Hold the members of a request's `kv_transfer_params` to what may stand together.

    Raises:
        ContractViolated: They may not, or are none of the tier's where there is nothing else.
    """
    roles = {name for name in _ROLES if params.get(name) is not None}
    if len(roles) > 1 and roles != {_DECODER, _SOURCE}:
        raise _violated("p2p_roles", f"{' and '.join(sorted(roles))} exclude each other")
    if leg is SimulatedLeg.DECODE and _SOURCE in roles:
        raise _violated("p2p_roles", "a decode leg has its blocks from the prefill leg")
    if config.kv_connector == "offloading":
        unknown = params.keys() - _ROLES - _OTHER_MEMBERS
        if unknown:
            message = f"the OffloadingConnector knows no {', '.join(sorted(unknown))}"
            raise _violated("p2p_members", message)


def read_decoder(params: Handle) -> str:
    """Return the id under which a prefill leg's blocks are fetched.

    Raises:
        ContractViolated: There is none: a real engine fails to store them, and says nothing.
    """
    return _read_id(_DECODER, params[_DECODER])


def read_prefiller(params: Handle) -> Source:
    """Return whom a decode leg asks for its blocks.

    Raises:
        ContractViolated: A member is missing: a real engine computes the prompt again.
    """
    return _read_engine(_PREFILLER, params[_PREFILLER])


def read_source(params: Handle) -> Source | None:
    """Return whom a leg asks for the beginning of its prompt; None if it asks nobody.

    Raises:
        ContractViolated: A member is missing: a real engine asks nobody.
    """
    return None if params.get(_SOURCE) is None else _read_engine(_SOURCE, params[_SOURCE])


def _read_engine(role: str, value: object) -> Source:
    number = _read_id(role, value)
    members = value if isinstance(value, dict) else {}
    host, port = members.get("remote_host"), members.get("remote_port")
    if not isinstance(host, str) or not host:
        raise _violated("p2p_address", f"{role} has no remote_host")
    if type(port) is not int or not 0 < port < 65_536:
        raise _violated("p2p_address", f"{role} has no remote_port")
    return Source(number, host, port)


def _read_id(role: str, value: object) -> str:
    number = value.get("kv_request_id") if isinstance(value, dict) else None
    if not isinstance(number, str) or not number:
        raise _violated("p2p_id", f"{role} has no kv_request_id")
    return number


def _violated(reason: str, message: str) -> ContractViolated:
    return ContractViolated(reason, 400, message, param="kv_transfer_params")


class P2pTier:
    """The tier of one engine: what it has for others, and what it asks of them."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: EngineMetrics,
        transfers: TransferStore,
        own_host: str,
        first_port: Callable[[], int],
    ) -> None:
        """Start without blocks.

        Args:
            config: The engine's settings.
            metrics: Counts what came of questions.
            transfers: Where the blocks of prefill legs are held, and waited for.
            own_host: The engine's address.
            first_port: Gives the port of rank 0.
        """
        self._config = config
        self._metrics = metrics
        self._transfers = transfers
        self._own_host = own_host
        self._first_port = first_port
        self._deadline_s = min(config.peer_timeout_s, _LOAD_DEADLINE_S)
        self._kept: OrderedDict[tuple[int, str], None] = OrderedDict()

    def application(self, rank: int) -> web.Application:
        """Return what answers at the port of a rank."""

        async def fetch(request: web.Request) -> web.Response:
            asked = json.loads(await request.read())
            key = _key(asked["kv_request_id"], rank)
            if self._transfers.is_expired(key, time.monotonic()):
                return web.json_response({"result": "expired"})
            result = await self._transfers.register(
                self._config.engine_id, key, asked["prompt_digest"]
            )
            return web.json_response({"result": result})

        async def look_up(request: web.Request) -> web.Response:
            asked = json.loads(await request.read())
            return web.json_response({"hits": self._count_hits(asked["blocks"], rank)})

        application = web.Application(client_max_size=0)
        application.add_routes([web.post(FETCH_PATH, fetch), web.post(LOOKUP_PATH, look_up)])
        return application

    def read_rank(self, header: str | None) -> int:
        """Return the rank that a request is for.

        Raises:
            ContractViolated: There is no such rank, or it is left to the engine.
        """
        size = self._config.data_parallel_size
        if header is None and size == 1:
            return 0
        if header is None or not header.isdecimal() or int(header) >= size:
            message = f"{RANK_HEADER} must be a number below {size}"
            raise ContractViolated("p2p_rank", 400, message)
        return int(header)

    def begin(self, kv_request_id: str, rank: int) -> str:
        """Take a prefill leg, and return under which name its blocks are held.

        Raises:
            ContractViolated: The id has been used.
        """
        key = _key(kv_request_id, rank)
        self._transfers.begin(key)
        return key

    def keep(self, blocks: tuple[str, ...], rank: int) -> None:
        """Have the blocks of a prompt, for others to ask for; the oldest go if there are many."""
        for block in blocks:
            self._kept[rank, block] = None
            self._kept.move_to_end((rank, block))
        while len(self._kept) > self._config.kv_blocks:
            self._kept.popitem(last=False)

    def lose(self) -> None:
        """Have no blocks any more, as after a restart."""
        self._kept.clear()

    def check_source(self, source: Source, rank: int) -> None:
        """Check whom a leg asks for the beginning of its prompt.

        Raises:
            ContractViolated: It asks the very engine that has it, or under an id used before.
        """
        if (source.host, source.port) == (self._own_host, self._first_port() + rank):
            raise _violated("p2p_own_source", "remote_kv_source is the engine itself")
        self._transfers.begin(_key(source.kv_request_id, rank))

    async def pull(self, peers: PeerClient, source: Source, request: GenerationRequest) -> int:
        """Wait for the blocks of a decode leg.

        Returns:
            How many tokens of the prompt they hold: none if they did not come in time.

        Raises:
            ContractViolated: They are not this request's.
        """
        question = {"kv_request_id": source.kv_request_id, "prompt_digest": request.digest}
        deadline = time.monotonic() + self._deadline_s
        try:
            answer = await peers.ask(source.url(FETCH_PATH), question, self._deadline_s)
        except TransferFailed:
            # Where nobody is, that is found out by nothing but the time.
            await asyncio.sleep(deadline - time.monotonic())
            self._metrics.recomputed_prompts.inc()
            return 0
        result = answer["result"]
        if result == "expired":
            self._metrics.recomputed_prompts.inc()
            return 0
        if result != "ok":
            raise ContractViolated(f"transfer_{result}", 500, f"the fetch is refused: {result}")
        return request.prompt_tokens - 1

    async def look_up(
        self,
        peers: PeerClient,
        source: Source,
        blocks: tuple[str, ...],
        request: GenerationRequest,
    ) -> int:
        """Ask another engine for the beginning of a prompt.

        Returns:
            How many tokens of it have come.
        """
        question = {"kv_request_id": source.kv_request_id, "blocks": blocks}
        try:
            hits = int((await peers.ask(source.url(LOOKUP_PATH), question))["hits"])
        except TransferFailed:
            self._metrics.kv_source_lookups.labels("unreachable").inc()
            return 0
        self._metrics.kv_source_lookups.labels("hit" if hits else "miss").inc()
        return min(hits * self._config.block_size, request.prompt_tokens - 1)

    def _count_hits(self, blocks: list[str], rank: int) -> int:
        """Count the blocks at the beginning of a prompt that are all there."""
        for place, block in enumerate(blocks):
            if (rank, block) not in self._kept:
                return place
        return len(blocks)


def _key(kv_request_id: str, rank: int) -> str:
    return f"{kv_request_id}@{rank}"
