"""TensorRT-LLM, generation first: both legs at once, and they meet by an id.

Source: TensorRT-LLM `openai_disagg_service.py`. The context engine computes once the generation
engine is there to receive the blocks: it must not be waited for before that is on its way. The
generation engine is told where it is; that stands in what it says of itself (`/server_info`).
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
    number_request,
    sign,
    write_context,
)
from pdrouter.openai.body import encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

_STYLE = b'"schedule_style":"generation_first"'
_ENDPOINT = "ctx_info_endpoint"
_INFO_S = 5.0


class _Params(msgspec.Struct):
    ctx_info_endpoint: list[str] | str


class _Info(msgspec.Struct):
    disaggregated_params: _Params


_decode_info = msgspec.json.Decoder(_Info).decode


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
        """Return where other engines reach it.

        Raises:
            HandoffInvalid: it does not say so.
        """
        del pod
        try:
            told = _decode_info(body).disaggregated_params.ctx_info_endpoint
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise HandoffInvalid("no-endpoint", f"no {_ENDPOINT}: {error}") from None
        first = told if isinstance(told, str) else next(iter(told), "")
        if not first:
            raise HandoffInvalid("no-endpoint", f"{_ENDPOINT} is empty")
        return {_ENDPOINT: encode(first)}

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id at which the legs meet."""
        del leg  # There is one.
        number = number_request(placement.request_id, self.machine)
        asks = b'{"request_type":"context_only","disagg_request_id":%d,%b}' % (number, _STYLE)
        return write_context(request, asks)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the id, and where the context engine is."""
        del answers  # It does not wait for them.
        number = number_request(placement.request_id, self.machine)
        replace = strip_transfer_members(request)
        replace[PARAMS] = (
            b'{"request_type":"generation_only","ctx_request_id":%d,"disagg_request_id":%d,%b,'
            b'"ctx_info_endpoint":%b}' % (number, number, _STYLE, _find_endpoint(placement))
        )
        return request.edit(replace, TRANSFER_MEMBERS)

    def last_headers(
        self, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Mapping[str, str]:
        """Return the signature of what the generation engine is told, if there is a key."""
        del answers
        if not self.key:
            return {}
        endpoint = _find_endpoint(placement)
        return sign(self.key, {_ENDPOINT: endpoint, "encoded_opaque_state": b"null"})


def _find_endpoint(placement: Placement) -> bytes:
    """Return where the context engine is, as JSON.

    Raises:
        HandoffInvalid: it is not known.
    """
    endpoint = (placement.peer or {}).get(_ENDPOINT)
    if endpoint is None:
        raise HandoffInvalid("no-endpoint", f"{_ENDPOINT} is not known")
    return endpoint
