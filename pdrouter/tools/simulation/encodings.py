"""The consumer's side of an encoder cache: a prefill engine has media that another has encoded.

Source: vLLM `ec_connector/cpu/scheduler/consumer.py`, `docs/features/ec_cpu_connector.md`. For each
item of a chat the engine looks in `ec_transfer_params` for what an encoder has said of it. What
cannot be had it encodes itself, if the medium itself is in the chat; a part that only stands for it
leaves it nothing to encode, and the request fails in the worker. An engine without
`--enable-mm-embeds` takes no such parts.

A real consumer caches what it has fetched, and looks at nothing that it has no use for. This one
fetches each time, so that what a router says twice is found out, and refuses what is of no use.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.kv_handles import FetchResult, HandleStore
from pdrouter.tools.simulation.legs import Handle, SimulatedLeg
from pdrouter.tools.simulation.media_items import MediaItem, is_metadata
from pdrouter.tools.simulation.node_address import THIS_NODE
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.refusal import ContractViolated, Refused, malformed
from pdrouter.tools.simulation.transfer import TransferFailed

FETCH_PATH = "/simulation/encodings/fetch"
"""Where an encode engine gives encoded media away; it stands in for a read over NIXL."""

_PARAMS = "ec_transfer_params"
_GONE: frozenset[FetchResult] = frozenset({"expired", "lost"})


def check_media(
    members: Members, media: Sequence[MediaItem], leg: SimulatedLeg, config: EngineConfig
) -> None:
    """Hold the media of a leg, and what it says of them, to the contract.

    Raises:
        Refused: A part is malformed, or the engine does not take it.
        ContractViolated: What is said does not go with the media.
    """
    encoded = [item for item in media if not item.is_raw]
    if encoded and not config.mm_embeds:
        message = f"You must set `--enable-mm-embeds` to input `{encoded[0].embeds_type}`"
        raise Refused(400, message, param="messages")
    for item in encoded:
        if not is_metadata(item):
            raise malformed(f"{item.embeds_type} must say its size", "messages")
    _check_handles(read_handles(members), media, leg, config)


def _check_handles(
    handles: Mapping[str, Handle],
    media: Sequence[MediaItem],
    leg: SimulatedLeg,
    config: EngineConfig,
) -> None:
    if handles and leg is SimulatedLeg.DECODE:
        raise _violated("ec_params", 400, "a decode leg has the blocks, and needs no encodings")
    if handles and not config.ec_connector:
        raise _violated("ec_params", 400, "an engine without EC connector fetches no encodings")
    if leg is SimulatedLeg.DECODE:
        return
    useless = handles.keys() - {item.key for item in media}
    if useless:
        raise _violated("ec_useless", 400, f"no medium is {', '.join(sorted(useless))}")
    for item in media:
        if item.is_raw:
            continue
        if item.key not in handles:
            raise _violated("ec_missing", 500, f"nobody has said where {item.key} is")
        # As text: 1.0 is another number than 1.
        if json.dumps(handles[item.key].get("metadata")) != json.dumps(item.metadata):
            raise _violated("ec_metadata", 500, f"the size of {item.key} is another one")


def read_handles(members: Members) -> Mapping[str, Handle]:
    """Return what encoders have said of media, by the media's keys.

    Raises:
        Refused: It is no object of objects.
    """
    params = members.get(_PARAMS)
    if params is None:
        return {}
    if not isinstance(params, dict) or not all(isinstance(each, dict) for each in params.values()):
        raise malformed("Input should be a valid dictionary", _PARAMS)
    return params


def _violated(reason: str, status: int, message: str) -> ContractViolated:
    return ContractViolated(reason, status, message, param=_PARAMS)


@dataclass(frozen=True, slots=True)
class MediaLoader:
    """Gets what the media of a request are to a model, by fetching or by computing.

    Attributes:
        config: The engine's settings.
        metrics: Counts items.
        peers: Asks encode engines.
        own_host: The engine's address: what `localhost` means in a handle.
    """

    config: EngineConfig
    metrics: EngineMetrics
    peers: PeerClient
    own_host: str

    async def load(self, media: Sequence[MediaItem], handles: Mapping[str, Handle]) -> None:
        """Have all media, one fetch for each that is known to be elsewhere.

        Raises:
            TransferFailed: One is nowhere.
            ContractViolated: A handle is not one, or not good any more.
        """
        for item in {item.key: item for item in media}.values():
            handle = handles.get(item.key)
            if handle is not None and await self._fetch(item.key, handle):
                self.metrics.media_items.labels("fetched").inc()
            elif item.is_raw:
                self.metrics.media_items.labels("local").inc()
            else:
                raise TransferFailed(f"{item.key} is not on its encoder any more")

    async def _fetch(self, key: str, handle: Handle) -> bool:
        """Fetch an item; say whether it was there."""
        host, port = handle.get("peer_host"), handle.get("peer_port")
        if host is None and port is None and not handle.get("metadata"):
            return False  # The encoder has said that it has lost it.
        if not isinstance(host, str) or type(port) is not int:
            raise _violated("ec_address", 500, f"nobody can tell where {key} is")
        host = self.own_host if host in THIS_NODE else host
        url = URL.build(scheme=self.config.scheme, host=host, port=port, path=FETCH_PATH)
        question = {"key": key, "handle": handle, "revision": self.config.revision}
        try:
            answer: dict[str, Any] = await self.peers.ask(url, question)
        except TransferFailed:
            return False
        result: FetchResult = answer["result"]
        if result == "ok" or result in _GONE:
            return result == "ok"
        raise _violated(f"ec_{result}", 500, f"the fetch of {key} is refused: {result}")


class EncodingsApi:
    """The path at which other engines fetch what this one has encoded."""

    def __init__(self, config: EngineConfig, encodings: HandleStore) -> None:
        self._config = config
        self._encodings = encodings

    def routes(self) -> list[web.RouteDef]:
        """Give all paths and what answers them."""
        return [web.post(FETCH_PATH, self._fetch)]

    async def _fetch(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        result: FetchResult = "other_revision"
        if asked["revision"] == self._config.revision:
            result = self._encodings.fetch(asked["handle"], asked["key"], time.monotonic())
        return web.json_response({"result": result})
