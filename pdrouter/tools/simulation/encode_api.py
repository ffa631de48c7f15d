"""An encode engine: it computes what a model sees of media, and has others fetch it.

Source: vLLM `docs/features/ec_cpu_connector.md`, `disagg_epd_proxy.py`, and the log lines of
llm-d#2535. It is a vLLM with `ec_role: ec_producer`, which has no language model. A request is a
chat of one message with nothing but media; the answer says, for each, where it is held, and what
stands for it in the chat that follows. What it says is good for one fetch, and for its lease. An
encoder that has lost an item says so by empty metadata without an address; one that does not know
its size any more has an address without metadata, and then too the medium itself has to be sent on.

A real one is not strict. This one refuses what no proxy sends: text, several messages, another
path, other parameters of transfers (Mooncake's push of encodings is not simulated), an item without
`uuid`, or with the `uuid` of another content, for then two clients would see each other's media.
"""

import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

from aiohttp import web

from pdrouter.tools.simulation.api_requests import LIMITS, Api, parse_generation
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.generation import generate
from pdrouter.tools.simulation.kv_handles import HandleStore
from pdrouter.tools.simulation.media_items import (
    EMBEDS_OF,
    MediaItem,
    content_key,
    count_tokens,
    describe_size,
    list_media,
    list_parts,
)
from pdrouter.tools.simulation.openai_answers import ChatForm
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.reception import EngineCall
from pdrouter.tools.simulation.refusal import ContractViolated
from pdrouter.tools.simulation.running_ids import RunningIds

_REMEMBERED = 10_000
_FIRST_COOKIE = 2**53 + 1
_BYTES_PER_NUMBER, _WIDTH = 2, 2_048


class EncodeApi:
    """Serves the chats by which media are encoded."""

    def __init__(
        self,
        config: EngineConfig,
        metrics: EngineMetrics,
        compute: Compute,
        encodings: HandleStore,
        address: Callable[[], tuple[str, int]],
    ) -> None:
        """Start without media.

        Args:
            config: The engine's settings.
            metrics: Counts items.
            compute: The engine's time.
            encodings: Where encoded items are held.
            address: Gives the host and port at which they are fetched.
        """
        self._config = config
        self._metrics = metrics
        self._compute = compute
        self._encodings = encodings
        self._address = address
        self._ids = RunningIds(metrics)
        self._cookies = count(_FIRST_COOKIE, 2)
        self._contents: OrderedDict[str, str] = OrderedDict()

    async def serve(self, call: EngineCall) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refused: It is not acceptable.
        """
        check_encode_leg(call.http.path, call.members)
        request = parse_generation(Api.CHAT, call.members, self._config)
        request_id = call.http.headers.get("x-request-id") or uuid.uuid4().hex
        media = list_media(call.members)
        for item in media:
            self._check_content(item)
        tokens = sum(map(count_tokens, media))
        with self._ids.claim(request_id), self._in_flight(len(media)):
            async with self._compute.prefilled(tokens):
                generation = generate(
                    replace(request, limit=1), self._config, request_id, int(time.time())
                )
                answer = ChatForm().plain(generation)
                shown = self._publish(media, call.fault)
                return web.json_response({**answer, "ec_transfer_params": shown})

    @contextmanager
    def _in_flight(self, items: int) -> Iterator[None]:
        self._metrics.note_encoding(items)
        try:
            yield
        finally:
            self._metrics.note_encoding(-items)

    def _check_content(self, item: MediaItem) -> None:
        """Remember what an item is, and check that its name is nothing else's."""
        content = content_key(item.part)
        if self._contents.setdefault(item.key, content) != content:
            raise _violated("encode_uuid", "the uuid is that of another content")
        self._contents.move_to_end(item.key)
        if len(self._contents) > _REMEMBERED:
            self._contents.popitem(last=False)

    def _publish(self, media: Sequence[MediaItem], fault: Fault) -> dict[str, dict[str, object]]:
        """Hold items, and say for each where it is and in which places of the request it stood."""
        places: dict[str, list[int]] = {}
        for place, item in enumerate(media):
            places.setdefault(item.key, []).append(place)
        items = {item.key: item for item in media}
        return {key: self._describe(items[key], places[key], fault) for key in places}

    def _describe(self, item: MediaItem, places: list[int], fault: Fault) -> dict[str, object]:
        """Describe an item as vLLM does, once it is held.

        `ec_cookie` is ours: an odd integer above 2**53, which no float can hold.
        """
        modality = item.embeds_type.removesuffix("_embeds")
        if fault.null_params:
            return {"modality": modality, "item_indices": places, "metadata": {}}
        self._metrics.media_items.labels("encoded").inc()
        host, port = self._address()
        shape = [count_tokens(item), _WIDTH]
        described: dict[str, object] = {
            "modality": modality,
            "item_indices": places,
            "metadata": describe_size(item),
            "peer_host": host,
            "peer_port": port,
            "size_bytes": math.prod(shape) * _BYTES_PER_NUMBER,
            "shape": shape,
            "ec_cookie": next(self._cookies),
        }
        shown = {name: value for name, value in described.items() if name not in fault.omit_params}
        self._encodings.issue(shown, item.key, 0, time.monotonic())
        return shown


def check_encode_leg(path: str, members: Members) -> None:
    """Hold a request to what an encode engine is asked.

    Raises:
        ContractViolated: With status 400, naming the member at fault.
    """
    if path != Api.CHAT:
        raise _violated("encode_path", f"an encoder answers {Api.CHAT} only")
    if members.get("stream") or members.get("stream_options") is not None:
        raise _violated("encode_stream", "an encoder streams nothing", "stream")
    for name in (*LIMITS[Api.CHAT], "n"):
        if members.get(name) not in (None, 1):
            raise _violated("encode_limit", f"{name} must be absent, or 1", name)
    for name in ("kv_transfer_params", "ec_transfer_params"):
        if members.get(name) is not None:
            raise _violated("encode_transfer_params", f"an encoder takes no {name}", name)
    _check_message(members)


def _check_message(members: Members) -> None:
    messages = members.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or messages[0].get("role") != "user":
        raise _violated("encode_messages", "there must be one message, of a user", "messages")
    parts = list(list_parts(members))
    if not parts or not isinstance(messages[0]["content"], list):
        raise _violated("encode_messages", "there must be media", "messages")
    for part in parts:
        if part.get("type") not in EMBEDS_OF:
            raise _violated("encode_part", f"{part.get('type')} is no medium", "messages")
        if not isinstance(part.get("uuid"), str) or not part["uuid"]:
            raise _violated("encode_uuid", "a medium needs a uuid", "messages")


def _violated(reason: str, message: str, param: str | None = None) -> ContractViolated:
    return ContractViolated(reason, 400, message, param=param)
