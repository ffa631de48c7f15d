"""One try of a side leg: what its engine gets, and what comes of it."""

from collections.abc import Mapping

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engines.split import NOTHING, Leg, PeerFacts, Placement, Split
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.usage import AnswerInvalid, read_answer
from pdrouter.routing.decision import Choice
from pdrouter.serving.lease import Leases
from pdrouter.serving.leg_outcome import Attempt, LegAnswer


class TryResult(msgspec.Struct, frozen=True):
    """What came of a try of a leg.

    Attributes:
        attempt: how it has ended.
        answer: the engine's answer, of any status; None where there is none.
        done: what the leg was for; None if it was not carried out.
    """

    attempt: Attempt
    answer: EngineAnswer | None = None
    done: LegAnswer | None = None


class LegTry(msgspec.Struct, eq=False):
    """One try of a leg on one pod.

    Attributes:
        choice: the leg and the pod.
        split: the wire.
        request: the client's request, as this engine gets it.
        pods: the pods by leg.
        source: the pod that has more of the prompt cached; None for none.
        peer: what is known of the leg's engine.
    """

    choice: Choice
    split: Split
    request: InferenceRequest
    pods: Mapping[Leg, Pod]
    source: Pod | None
    peer: PeerFacts | None = NOTHING

    def place(self, request_id: str) -> Placement:
        """Return where the legs run, under this id."""
        return Placement(self.pods, request_id, self.peer, self.source)

    def write(self, request_id: str) -> tuple[Mapping[str, str], Pieces]:
        """Return headers and body of a request with this id."""
        split = self.split
        placement = Placement(self.pods, request_id, self.peer, self.source)
        body = split.side_body(self.choice.leg, self.request, placement)
        return split.side_headers(placement), body

    def read(self, attempt: Attempt, answer: EngineAnswer, leases: Leases) -> LegAnswer:
        """Return what the leg was for, which this engine has carried out."""
        try:
            members = read_answer(answer.body)
        except AnswerInvalid:
            members = None
        done = LegAnswer(
            attempt.leg,
            attempt.pod,
            attempt.request_id,
            answer.body,
            None if members is None else members.count(),
            self.peer,
            members=members,
        )
        expiry = self.split.find_expiry(done)
        late = leases.is_late(attempt.seconds, answer.headers.get("date", ""), expiry)
        return structs.replace(done, late=True) if late else done
