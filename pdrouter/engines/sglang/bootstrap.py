"""SGLang: both engines get the same body at once, and meet in a room that it names.

Source: SGLang 0.5.23 `disaggregation/` and the routers of its own. The prefill engine registers
itself at its bootstrap server; the decode engine asks there for the room, and waits for the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_128
from itertools import islice
from struct import unpack

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, strip_transfer_members
from pdrouter.engines.split import (
    PREFILL_DECODE,
    EnginePod,
    Leg,
    Order,
    Placement,
    SideAnswer,
    Split,
)
from pdrouter.openai.body import encode
from pdrouter.openai.coercion import as_integer, decode_scalar
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.json_walk import list_items
from pdrouter.openai.misfits import has_several_items
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

MOST_ITEMS = 1024
"""Choices of all prompts of a request; each needs a room of its own."""

FITS = frozenset({"n", "several-prompts", "truncated-prompt", "invalid-value", "multimodal"})
"""What both engines compute alike, as far as they give each choice its own room."""

_DEFAULT_PORT = 8998
_ROOM_BYTES = 8
_ROOMS = 2**63


@dataclass(frozen=True, slots=True)
class Bootstrap(Split):
    """SGLang's own wire.

    Both engines read the whole request, so that nothing that one of them would refuse, cut or
    render differs on the other.
    """

    name: str = "bootstrap"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.TOGETHER
    fits: frozenset[str] = FITS

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body with where the legs meet."""
        return _write(request, placement, leg)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with where the legs meet."""
        del answers  # They say nothing to the other engine.
        return _write(request, placement, Leg.DECODE)


def _write(request: InferenceRequest, placement: Placement, leg: Leg) -> Pieces:
    """Return the body of either leg; but for data-parallel ranks, they are the same.

    Raises:
        RequestRejected: it asks for more than any engine runs at once.
    """
    prefill = placement.pods[Leg.PREFILL]
    items = _count_items(request)
    rooms = _number_rooms(placement.request_id, items, prefill)
    # Older engines put a colon and the port behind it as it stands; newer ones take both forms.
    host = f"[{prefill.ip}]" if ":" in prefill.ip else prefill.ip
    # Null leaves it to the decode engine.
    port = None if prefill.bootstrap_port is None else prefill.bootstrap_port or _DEFAULT_PORT
    meeting: tuple[object, ...] = host, port, rooms[0]
    if items > 1:
        meeting = [host] * items, [port] * items, rooms
    replace = strip_transfer_members(request)
    for name, value in zip(
        ("bootstrap_host", "bootstrap_port", "bootstrap_room"), meeting, strict=True
    ):
        replace[name] = encode(value)
    rank, source = placement.pods[leg].number, prefill.number
    if rank is not None:
        replace["routed_dp_rank"] = encode(rank)
    if leg is Leg.DECODE and source is not None:
        replace["disagg_prefill_dp_rank"] = encode(source)
    return request.edit(replace, TRANSFER_MEMBERS)


def _number_rooms(request_id: str, count: int, prefill: EnginePod) -> list[int]:
    """Return rooms that no other request or attempt has.

    The id is random and unknown to clients: nobody can meet a room on purpose, and both legs find
    it by themselves.

    To engines, the remainder of a room says which rank of the prefill engine has it: they fail what
    another rank was asked for (`follow_bootstrap_room`), and older ones know nothing else of ranks.
    """
    digest = shake_128(request_id.encode()).digest(_ROOM_BYTES * count)
    numbers = unpack(f">{count}Q", digest)
    if prefill.number is None:
        return [number % _ROOMS for number in numbers]
    size, rank = prefill.ranks, prefill.number
    return [number % (_ROOMS // size) * size + rank for number in numbers]


def _count_items(request: InferenceRequest) -> int:
    """Return how many choices of how many prompts a request asks for.

    Raises:
        RequestRejected: they are too many.
    """
    prompts = 1
    prompt = request.prompt
    if request.endpoint.batches and has_several_items(prompt):
        prompts = len(list(islice(list_items(prompt), MOST_ITEMS + 1)))
    options = request.body if request.endpoint.sampling is None else request.sampling
    raw = None if options is None else options.raw("n")
    # What is no such number, an engine is to refuse.
    choices = max(1, (None if raw is None else as_integer(decode_scalar(raw))) or 1)
    if prompts * choices > MOST_ITEMS:
        message = f"a request may have {MOST_ITEMS} choices of all its prompts"
        name = "n" if choices > 1 else request.prompt_name
        raise RequestRejected(400, "invalid_value", message, name)
    return prompts * choices
