"""Transfers that a decode engine asks for by an id which both legs have from the beginning.

Source: vLLM `docs/design/nixl_kv_push_connector.md`, `push_scheduler.py`, `push_worker.py`; the
Mooncake proxy's example. Neuron's write mode is the same wire. Either leg may arrive first. The
prefill engine answers as soon as it has computed, and keeps the blocks for its lease; the decode
engine waits for a transfer that it is never told will not come.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from yarl import URL

from pdrouter.tools.simulation.legs import Handle
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.refusal import ContractViolated

REGISTER_PATH = "/simulation/transfers/register"
"""Where a prefill engine takes registrations; it stands in for NIXL's notification."""
FREE_PATH = "/simulation/transfers/free"
"""Where it is told that nobody will ask for a transfer."""
QUERY_PATH = "/query"
"""Where Mooncake's bootstrap server says which engine has which data-parallel rank."""

_REMEMBERED = 10_000
_NEEDED_FOR_PUSH = (
    "remote_engine_id",
    "remote_host",
    "remote_port",
    "tp_size",
    "remote_request_id",
)
_NEEDED_FOR_MOONCAKE = ("remote_bootstrap_addr", "remote_engine_id")


@dataclass(frozen=True, slots=True)
class Registration:
    """What a decode engine asks for.

    Attributes:
        url: Where the prefill engine takes registrations.
        engine_id: The engine that is to have the blocks.
        transfer_id: The id that both legs have.
    """

    url: URL
    engine_id: str
    transfer_id: str


@dataclass(slots=True)
class _Transfer:
    digest: str = ""
    request_id: str = ""
    tokens: int = 0
    deadline: float | None = None
    computed: asyncio.Event = field(default_factory=asyncio.Event)
    registered: bool = False


class TransferStore:
    """The transfers of a prefill engine. Time is passed in, in seconds of a monotonic clock."""

    def __init__(self, engine_id: str, lease_s: float, on_expiry: Callable[[], None]) -> None:
        """Start without a transfer.

        Args:
            engine_id: The engine's own identity.
            lease_s: Seconds for which computed blocks wait for a registration.
            on_expiry: Called for each transfer whose blocks are given up.
        """
        self._engine_id = engine_id
        self._lease_s = lease_s
        self._on_expiry = on_expiry
        self._transfers: dict[str, _Transfer] = {}
        self._begun: OrderedDict[str, None] = OrderedDict()
        self._expired: OrderedDict[str, None] = OrderedDict()

    def begin(self, transfer_id: str) -> None:
        """Take a prefill leg.

        Raises:
            ContractViolated: The id has been used.
        """
        if transfer_id in self._begun:
            message = f"transfer_id {transfer_id} has been used"
            raise ContractViolated("transfer_reused", 400, message, param="kv_transfer_params")
        self._begun[transfer_id] = None
        if len(self._begun) > _REMEMBERED:
            self._begun.popitem(last=False)

    def finish(
        self, transfer_id: str, digest: str, tokens: int, now: float, request_id: str = ""
    ) -> None:
        """Hold computed blocks for the decode leg, or push them if it is there.

        Args:
            transfer_id: The id that both legs have.
            digest: The identity of the prompt.
            tokens: Its length.
            now: The time.
            request_id: What the engine calls the request in its answer.
        """
        transfer = self._transfers.setdefault(transfer_id, _Transfer())
        transfer.digest, transfer.tokens, transfer.request_id = digest, tokens, request_id
        transfer.deadline = now + self._lease_s
        transfer.computed.set()

    async def register(self, engine_id: str, transfer_id: str, digest: str) -> str:
        """Wait for blocks as a decode engine's registration does.

        Returns:
            What became of it: `ok`, `reused`, `wrong_engine` or `mismatch`.
        """
        if engine_id != self._engine_id:
            return "wrong_engine"
        transfer = self._transfers.setdefault(transfer_id, _Transfer())
        if transfer.registered:
            return "reused"
        transfer.registered = True
        try:
            await transfer.computed.wait()
            return "ok" if transfer.digest == digest else "mismatch"
        finally:
            if transfer_id in self._transfers:
                del self._transfers[transfer_id]

    def free(self, engine_id: str, request_id: str) -> str:
        """Free blocks that nobody will ask for.

        Args:
            engine_id: The engine that is to have them.
            request_id: What it has called the request.

        Returns:
            What became of it: `ok`, `gone`, `in_use` or `wrong_engine`.
        """
        if engine_id != self._engine_id:
            return "wrong_engine"
        for transfer_id, transfer in self._transfers.items():
            if request_id and transfer.request_id == request_id:
                if transfer.registered:
                    return "in_use"
                del self._transfers[transfer_id]
                return "ok"
        return "gone"

    def lose(self) -> None:
        """Lose all blocks, and what ids were used, as an engine does whose process ends."""
        self._transfers.clear()
        self._begun.clear()
        self._expired.clear()

    def outstanding(self, now: float) -> int:
        """Count the transfers whose blocks are held, or waited for."""
        self._expire(now)
        return len(self._transfers)

    def is_expired(self, transfer_id: str, now: float) -> bool:
        """Say whether blocks under this id were held until their lease had ended."""
        self._expire(now)
        return transfer_id in self._expired

    def held_tokens(self, now: float) -> int:
        """Count the prompt tokens whose blocks are held."""
        self._expire(now)
        return sum(transfer.tokens for transfer in self._transfers.values())

    def _expire(self, now: float) -> None:
        for transfer_id, transfer in list(self._transfers.items()):
            late = transfer.deadline is not None and transfer.deadline <= now
            if late and not transfer.registered:
                del self._transfers[transfer_id]
                self._expired[transfer_id] = None
                self._on_expiry()
        while len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)


def read_transfer_id(params: Handle) -> str:
    """Return the id that a leg brings.

    Raises:
        ContractViolated: It brings none.
    """
    transfer_id = params.get("transfer_id")
    if not isinstance(transfer_id, str) or not transfer_id:
        message = "transfer_id must be a string"
        raise ContractViolated("transfer_id", 400, message, param="kv_transfer_params")
    return transfer_id


def read_push(params: Handle, scheme: str) -> Registration:
    """Return what a decode leg of the push wire asks for.

    Args:
        params: What came with the leg.
        scheme: What engines' APIs speak.

    Raises:
        ContractViolated: A member is missing, which is a KeyError in the scheduler of a real one.
    """
    _check_needed(params, _NEEDED_FOR_PUSH)
    url = URL.build(
        scheme=scheme, host=params["remote_host"], port=params["remote_port"], path=REGISTER_PATH
    )
    return Registration(url, params["remote_engine_id"], read_transfer_id(params))


def read_mooncake(params: Handle) -> Registration:
    """Return what a decode leg of Mooncake's wire asks for.

    Raises:
        ContractViolated: A member is missing.
    """
    _check_needed(params, _NEEDED_FOR_MOONCAKE)
    url = URL(str(params["remote_bootstrap_addr"])).with_path(REGISTER_PATH)
    return Registration(url, params["remote_engine_id"], read_transfer_id(params))


def _check_needed(params: Handle, names: tuple[str, ...]) -> None:
    missing = [name for name in names if params.get(name) is None]
    if params.get("do_remote_prefill") is not True or params.get("do_remote_decode"):
        missing.append("do_remote_prefill")
    if missing:
        message = f"EngineCore contract violated: KeyError: {', '.join(missing)}"
        raise ContractViolated("decode_missing_keys", 500, message)


class TransferApi:
    """The paths at which other engines and routers ask a prefill engine for transfers."""

    def __init__(self, engine_id: str, store: TransferStore) -> None:
        self._engine_id = engine_id
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Give all paths and what answers them."""
        return [
            web.post(REGISTER_PATH, self._register),
            web.post(FREE_PATH, self._free),
            web.get(QUERY_PATH, self._query),
        ]

    async def _register(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        result = await self._store.register(
            asked["engine_id"], asked["transfer_id"], asked["prompt_digest"]
        )
        return web.json_response({"result": result})

    async def _free(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        result = self._store.free(asked["engine_id"], asked["request_id"])
        return web.json_response({"result": result})

    async def _query(self, _: web.Request) -> web.Response:
        return web.json_response({"0": {"engine_id": self._engine_id}})


async def fetch_transfer(client: PeerClient, registration: Registration, digest: str) -> None:
    """Register, and wait for the blocks of a prompt.

    Raises:
        TransferFailed: No prefill engine is there, or the blocks did not come in time.
        ContractViolated: They are not this request's.
    """
    question = {
        "engine_id": registration.engine_id,
        "transfer_id": registration.transfer_id,
        "prompt_digest": digest,
    }
    result = (await client.ask(registration.url, question))["result"]
    if result != "ok":
        message = f"the transfer is refused: {result}"
        raise ContractViolated(f"transfer_{result}", 500, message)


async def free_transfer(client: PeerClient, params: Handle) -> None:
    """Tell a prefill engine that nobody will ask for the blocks of a push handle.

    Raises:
        TransferFailed: No prefill engine is there.
        ContractViolated: The handle is not whole, or its blocks are being written.
    """
    _check_needed(params, _NEEDED_FOR_PUSH)
    url = URL.build(
        scheme="http", host=params["remote_host"], port=params["remote_port"], path=FREE_PATH
    )
    question = {
        "engine_id": params["remote_engine_id"],
        "request_id": params["remote_request_id"],
    }
    result = (await client.ask(url, question))["result"]
    if result not in ("ok", "gone"):
        raise ContractViolated(f"transfer_{result}", 500, f"the release is refused: {result}")
