"""vLLM's MooncakeConnector: both legs at once, or one after the other.

The legs meet by the id of a transfer. Decode asks for the blocks at the bootstrap server of the
prefill engine and must name that engine, by an id of its data-parallel rank: the same server tells
it. Source: vLLM's `mooncake_connector_proxy.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from zlib import crc32

import msgspec

from pdrouter.engines.leg_bodies import (
    KV_PARAMS,
    TRANSFER_MEMBERS,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.engines.split import (
    PREFILL_DECODE,
    EnginePod,
    HandoffInvalid,
    Inquiry,
    Leg,
    Order,
    PeerFacts,
    Placement,
    SideAnswer,
    Split,
)
from pdrouter.openai.body import encode
from pdrouter.openai.headers import RANK
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

_DEFAULT_PORT = 8998
_QUERY_S = 5.0
_MOST_RANKS = 1024


class _Rank(msgspec.Struct):
    engine_id: str


_decode_ranks = msgspec.json.Decoder(dict[str, _Rank]).decode


@dataclass(frozen=True, slots=True)
class Mooncake(Split):
    """The Mooncake wire. What is known of a prefill engine is the id of each of its ranks."""

    order: Order = Order.TOGETHER
    name: str = "mooncake"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    fits: frozenset[str] = frozenset()

    @property
    def needs_peer(self) -> bool:
        """Return True: decode must name the prefill engine."""
        return True

    @property
    def trusts_head(self) -> bool:
        """Return False: the answer is short, and there as soon as its head is."""
        return False

    def inquire(self, pod: EnginePod) -> Inquiry | None:
        """Return what the bootstrap server is asked: the ids of the engine's ranks."""
        return Inquiry(pod.bootstrap_port or _DEFAULT_PORT, "/query", _QUERY_S)

    def read_peer(self, pod: EnginePod, body: bytes) -> PeerFacts:
        """Return the id of each rank.

        Raises:
            HandoffInvalid: there is none, or something else.
        """
        try:
            ranks = _decode_ranks(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise HandoffInvalid("invalid-ranks", f"no ids of ranks: {error}") from None
        if not 0 < len(ranks) <= _MOST_RANKS:
            raise HandoffInvalid("invalid-ranks", f"ids of {len(ranks)} ranks")
        for number, rank in ranks.items():
            if not (number.isascii() and number.isdecimal() and rank.engine_id):
                raise HandoffInvalid("invalid-ranks", f"no id of rank {number!r:.66}")
        if pod.number is not None and str(pod.number) not in ranks:
            raise HandoffInvalid("invalid-ranks", f"no id of rank {pod.number}")
        return {number: encode(rank.engine_id) for number, rank in ranks.items()}

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id of the transfer."""
        del leg  # There is one.
        replace, remove = limit_to_prefill(request)
        transfer_id = _name_transfer(placement)
        replace[KV_PARAMS] = (
            b'{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":%s}' % transfer_id
        )
        return request.edit(replace, remove)

    def side_headers(self, placement: Placement) -> Mapping[str, str]:
        """Return the header that sends the leg to the rank which decode is told of."""
        rank, _ = _choose_rank(placement)
        return MappingProxyType({RANK: rank})

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the place, the engine and the id of the transfer."""
        del answers  # They say nothing of it.
        pod = placement.pods[Leg.PREFILL]
        _, engine_id = _choose_rank(placement)
        replace = strip_transfer_members(request)
        replace[KV_PARAMS] = (
            b'{"do_remote_decode":false,"do_remote_prefill":true,"remote_bootstrap_addr":%s,'
            b'"remote_engine_id":%s,"transfer_id":%s}'
            % (encode(_locate(pod)), engine_id, _name_transfer(placement))
        )
        return request.edit(replace, TRANSFER_MEMBERS)


def _name_transfer(placement: Placement) -> bytes:
    return encode(f"xfer-{placement.request_id}")


def _locate(pod: EnginePod) -> str:
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    return f"http://{host}:{pod.bootstrap_port or _DEFAULT_PORT}"


def _choose_rank(placement: Placement) -> tuple[str, bytes]:
    """Return the rank that computes the prompt, and its engine's id.

    It is the pod's, where that is one of several ranks; otherwise, all get their share.

    Raises:
        HandoffInvalid: it is not known.
    """
    ranks, wanted = placement.peer or {}, placement.pods[Leg.PREFILL].number
    numbers = [str(wanted)] if wanted is not None else list(ranks)
    if not numbers or numbers[0] not in ranks:
        raise HandoffInvalid("unknown-peer", "no id of the prefill engine is known")
    number = numbers[crc32(placement.request_id.encode()) % len(numbers)]
    return number, ranks[number]
