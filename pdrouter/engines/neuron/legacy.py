"""The older Neuron wire: the whole prefill answer travels in `disagg_prefill_resp`.

Source: the `nixl` agent of aibrix, written for AWS's fork of vLLM (Neuron SDK 2.30 and before).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pdrouter.engines.leg_bodies import (
    TRANSFER_MEMBERS,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.engines.split import (
    PREFILL_DECODE,
    HandoffInvalid,
    Leg,
    Order,
    Placement,
    SideAnswer,
    Split,
)
from pdrouter.openai.body import BodyInvalid, check_object
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class NeuronLegacy(Split):
    """What aibrix calls `nixl`."""

    name: str = "neuron-legacy"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.SERIAL
    fits: frozenset[str] = frozenset()

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token."""
        del leg, placement  # There is one, wherever it is.
        return request.edit(*limit_to_prefill(request))

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the prefill answer, which names its engine, as a member."""
        del placement  # The answer says whose blocks they are.
        answer = answers[-1].body
        try:
            check_object(answer)
        except BodyInvalid as error:
            raise HandoffInvalid("invalid-answer", f"the prefill answer: {error}") from None
        replace = strip_transfer_members(request)
        replace["disagg_prefill_resp"] = answer.strip()
        return request.edit(replace, TRANSFER_MEMBERS)
