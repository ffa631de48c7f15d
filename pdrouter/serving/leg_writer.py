"""Writes the requests of one try of a side leg."""

from collections.abc import Mapping
from dataclasses import dataclass

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg, PeerFacts, Placement, Split
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class LegWriter:
    """Writes the requests of one try of a leg.

    Attributes:
        split: the wire.
        leg: the leg.
        request: the client's request.
        pods: the pods by leg.
        peer: what is known of the leg's engine.
        source: the pod that has more of the prompt cached; None for none.
    """

    split: Split
    leg: Leg
    request: InferenceRequest
    pods: Mapping[Leg, Pod]
    peer: PeerFacts | None
    source: Pod | None

    def place(self, request_id: str) -> Placement:
        """Return where the legs run, under this id."""
        return Placement(self.pods, request_id, self.peer, self.source)

    def write(self, request_id: str) -> tuple[Mapping[str, str], Pieces]:
        """Return headers and body of a request with this id."""
        placement = self.place(request_id)
        body = self.split.side_body(self.leg, self.request, placement)
        return self.split.side_headers(placement), body
