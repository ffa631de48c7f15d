"""The last leg of a request, with what the side legs have made for it."""

from collections.abc import Mapping, Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import HandoffInvalid, Leg, Placement, Split
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.leg_outcome import LegAnswer


def hand_over(
    request: InferenceRequest,
    split: Split,
    pods: Mapping[Leg, Pod],
    answers: Sequence[LegAnswer],
    most_bytes: int,
) -> tuple[Pieces, Mapping[str, str]]:
    """Return the last leg's body and headers, with the handle of the side leg before it.

    Args:
        request: the request.
        split: the wire.
        pods: its pods.
        answers: the answers of its side legs.
        most_bytes: size of the largest body that Envoy takes back.

    Raises:
        HandoffInvalid: the handle cannot be used.
    """
    answer = answers[-1]
    if answer.late:
        raise HandoffInvalid("late", "its blocks may be freed before they are fetched")
    placement = Placement(pods, answer.request_id, answer.peer)
    body = split.last_body(request, placement, answers)
    if len(body) > most_bytes:
        # Envoy would refuse it, as if the client's body were too large.
        raise HandoffInvalid("too-large", "with the handle, the body is too large")
    return body, split.last_headers(placement, answers)
