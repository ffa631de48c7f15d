"""vLLM's NixlConnector in push mode, which Neuron calls write mode: both legs at once.

Decode says by the id of the transfer where it wants the blocks, and the prefill engine writes them
there; either may come first. Decode must be told whose blocks it waits for, which only an answer of
the prefill engine says: until there is one, the legs run one after the other, as in pull mode.
Source: vLLM `docs/design/nixl_kv_push_connector.md`, `push_scheduler.py` and `push_worker.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pdrouter.engines.leg_bodies import KV_PARAMS, TRANSFER_MEMBERS, strip_transfer_members
from pdrouter.engines.split import (
    PEER_CHANGED,
    PREFILL_DECODE,
    HandoffInvalid,
    Leg,
    Order,
    PeerFacts,
    Placement,
    Release,
    SideAnswer,
    Split,
)
from pdrouter.engines.vllm.nixl import NixlPull, is_push
from pdrouter.openai.body import Body, encode
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

_DECODE_PARAMS = Body(b'{"do_remote_prefill":true,"do_remote_decode":false}')


_PEER = (
    "remote_engine_id",
    "remote_host",
    "remote_port",
    "tp_size",
    "pp_size",
    "dcp_size",
    "pcp_size",
    "remote_registration_generation",
    "transfer_mode",
)
"""What a handle says of the engine, and not of one request's blocks."""


@dataclass(frozen=True, slots=True)
class NixlPush(Split):
    """NIXL in push mode.

    Attributes:
        serial: the wire of legs that run one after the other, of either mode.
    """

    serial: NixlPull = field(default_factory=NixlPull)
    name: str = "nixl-push"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.TOGETHER
    fits: frozenset[str] = frozenset()

    @property
    def needs_peer(self) -> bool:
        """Return True where legs may run at once: decode looks the prefill engine up."""
        return self.order is Order.TOGETHER

    @property
    def trusts_head(self) -> bool:
        """Return False: the answer may be another engine's, for whose blocks decode does not wait.

        It is short, and there as soon as its head is.
        """
        return False

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id of the transfer."""
        return self.serial.side_body(leg, request, placement)

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with a handle: the answer's, or one of what is known."""
        if answers:
            return self.serial.last_body(request, placement, answers)
        replace = strip_transfer_members(request)
        # What becomes of the prefill engine's own id is not known yet: the legs meet by the
        # transfer's, and engines that fall back on this one compare it with what it begins with.
        own_id = encode(placement.request_id)
        replace[KV_PARAMS] = _DECODE_PARAMS.edit(
            {**(placement.peer or {}), "remote_request_id": own_id, "transfer_id": own_id}
        )
        return request.edit(replace, TRANSFER_MEMBERS)

    def learn_peer(self, answer: SideAnswer) -> PeerFacts | None:
        """Return whose blocks an answer speaks of; None if it has no handle of push mode."""
        try:
            return self._read_peer(answer)
        except HandoffInvalid:
            return None  # Whoever hands it over says what is wrong with it.

    def check_companion(self, answer: SideAnswer, placement: Placement) -> None:
        """Check that decode waits for the blocks of the engine that has answered.

        Raises:
            HandoffInvalid: it does not, or there are none.
        """
        if self._read_peer(answer) != placement.peer:
            message = "the prefill engine is not the one for whose blocks decode waits"
            raise HandoffInvalid(PEER_CHANGED, message)

    def find_expiry(self, answer: SideAnswer) -> float | None:
        """Return when the engine says that blocks are freed."""
        return self.serial.find_expiry(answer)

    def release(self, answer: SideAnswer) -> Release | None:
        """Return a request that a decode engine refuses, as in pull mode."""
        return self.serial.release(answer)

    def _read_peer(self, answer: SideAnswer) -> PeerFacts | None:
        handle = self.serial.take_handle(answer)
        if not is_push(handle):
            return None
        return {name: bytes(handle[name]) for name in _PEER if name in handle}
