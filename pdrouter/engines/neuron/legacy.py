"""The older Neuron wire: the whole prefill answer travels in `disagg_prefill_resp`.

Source: the `nixl` agent of aibrix, written for AWS's fork of vLLM (Neuron SDK 2.30 and before).
"""

from dataclasses import dataclass

from pdrouter.engines.connector import (
    TRANSFER_MEMBERS,
    EnginePod,
    HandoffInvalid,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class NeuronLegacyConnector:
    """What aibrix calls `nixl`."""

    name: str = "neuron-legacy"

    def prefill_body(self, request: InferenceRequest) -> Pieces:
        """Return the client's body for one token."""
        return request.edit(*limit_to_prefill(request))

    def decode_body(
        self, request: InferenceRequest, prefill_answer: bytes, prefill_pod: EnginePod
    ) -> Pieces:
        """Return the client's body with the prefill answer as one of its members."""
        del prefill_pod  # The answer names its engine.
        try:
            Body(prefill_answer)
        except BodyInvalid as error:
            raise HandoffInvalid("invalid-answer", f"the prefill answer: {error}") from None
        replace = strip_transfer_members(request)
        replace["disagg_prefill_resp"] = prefill_answer.strip()
        return request.edit(replace, TRANSFER_MEMBERS)
