"""TensorRT-LLM, generation first: both legs at once, and they meet by an id.

Source: TensorRT-LLM `openai_disagg_service.py`. The context engine computes once the generation
engine is there to receive the blocks: it must not be waited for before that is on its way. The
generation engine is told what the context engine says of itself (`/server_info`): where it is, and
whatever else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, strip_transfer_members
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
from pdrouter.engines.trtllm.context_first import (
    PARAMS,
    PATHS,
    SIGNED,
    number_request,
    sign,
    write_context,
)
from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

_STYLE = b'"schedule_style":"generation_first"'
_ENDPOINT = "ctx_info_endpoint"
_INFO_S = 5.0
_OF_THE_REQUEST = frozenset(
    {"request_type", "ctx_request_id", "disagg_request_id", "schedule_style", "conversation_id"}
)
_NONE = frozenset({None, b"null", b'""', b"[]"})


class _Info(msgspec.Struct):
    disaggregated_params: msgspec.Raw


_decode_info = msgspec.json.Decoder(_Info).decode
_decode_endpoints = msgspec.json.Decoder(list[str] | str).decode


@dataclass(frozen=True, slots=True)
class GenerationFirst(Split):
    """The wire of `trtllm-serve` engines whose generation leg does not wait for the context leg.

    Attributes:
        key: what hand-overs are signed with; empty for no signatures.
        machine: number of this router among all that use the same engines; None to draw it for
            each request.
    """

    key: bytes = field(default=b"", repr=False)
    machine: int | None = None
    name: str = "trtllm-generation-first"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.TOGETHER
    fits: frozenset[str] = frozenset()
    paths: frozenset[str] = PATHS

    @property
    def needs_peer(self) -> bool:
        """Return True: the generation engine must know where the context engine is."""
        return True

    def inquire(self, pod: EnginePod) -> Inquiry | None:
        """Return what a context engine is asked: what it says of itself."""
        del pod  # All of them say it at the same place.
        return Inquiry(None, "/server_info", _INFO_S)

    def read_peer(self, pod: EnginePod, body: bytes) -> PeerFacts:
        """Return what generation engines are to be told of it.

        Raises:
            HandoffInvalid: it does not say where other engines reach it.
        """
        del pod
        try:
            params = Body(bytes(_decode_info(body).disaggregated_params))
            told = {name: params.raw(name) for name in params.names if name not in _OF_THE_REQUEST}
            if told.get(_ENDPOINT) not in _NONE:
                endpoints = _decode_endpoints(told[_ENDPOINT] or b"")
                # Of several it is the first's.
                first = endpoints if isinstance(endpoints, str) else endpoints[0]
                told[_ENDPOINT] = encode(first)
        except (msgspec.MsgspecError, BodyInvalid, UnicodeError, RecursionError) as error:
            raise HandoffInvalid("no-endpoint", f"no {_ENDPOINT}: {error}") from None
        facts = {name: raw for name, raw in told.items() if raw is not None and raw not in _NONE}
        _check_whereabouts(facts)
        return facts

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id at which the legs meet."""
        del leg  # There is one.
        number = number_request(placement.request_id, self.machine)
        asks = b'{"request_type":"context_only","disagg_request_id":%d,%b}' % (number, _STYLE)
        return write_context(request, asks)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the id, and what the context engine says of itself."""
        del answers  # It does not wait for them.
        number = number_request(placement.request_id, self.machine)
        replace = strip_transfer_members(request)
        told = (b",%b:%b" % (encode(name), raw) for name, raw in _find_facts(placement).items())
        replace[PARAMS] = (
            b'{"request_type":"generation_only","ctx_request_id":%d,"disagg_request_id":%d,%b%b}'
            % (number, number, _STYLE, b"".join(told))
        )
        return request.edit(replace, TRANSFER_MEMBERS)

    def last_headers(
        self, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Mapping[str, str]:
        """Return the signature of what the generation engine is told, if there is a key."""
        del answers
        if not self.key:
            return {}
        facts = _find_facts(placement)
        return sign(self.key, {name: facts.get(name, b"null") for name in SIGNED})


def _find_facts(placement: Placement) -> PeerFacts:
    """Return what is known of the context engine.

    Raises:
        HandoffInvalid: it is not known where that is.
    """
    facts = placement.peer or {}
    _check_whereabouts(facts)
    return facts


def _check_whereabouts(facts: PeerFacts) -> None:
    if not any(name in facts for name in SIGNED):
        raise HandoffInvalid("no-endpoint", f"neither of {', '.join(SIGNED)} is known")
