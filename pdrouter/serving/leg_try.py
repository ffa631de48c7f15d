"""One try of a side leg: what its engine gets, and what comes of it."""

from collections.abc import Mapping

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


class LegTry:
    """One try of a leg on one pod.

    Attributes:
        choice: the leg and the pod.
        split: the wire.
        request: the client's request, as this engine gets it.
        pods: the pods by leg.
        peer: what is known of the leg's engine.
        source: the pod that has more of the prompt cached; None for none.
        attempt: how it has ended.
        answer: the engine's answer, of any status; None where there is none.
        done: what the leg was for; None if it was not carried out.
    """

    __slots__ = (
        "answer",
        "attempt",
        "choice",
        "done",
        "peer",
        "pods",
        "request",
        "source",
        "split",
    )

    attempt: Attempt

    def __init__(
        self,
        choice: Choice,
        split: Split,
        request: InferenceRequest,
        pods: Mapping[Leg, Pod],
        source: Pod | None,
    ) -> None:
        self.choice = choice
        self.split = split
        self.request = request
        self.pods = pods
        self.peer: PeerFacts | None = NOTHING
        self.source = source
        self.answer: EngineAnswer | None = None
        self.done: LegAnswer | None = None

    def place(self, request_id: str) -> Placement:
        """Return where the legs run, under this id."""
        return Placement(self.pods, request_id, self.peer, self.source)

    def write(self, request_id: str) -> tuple[Mapping[str, str], Pieces]:
        """Return headers and body of a request with this id."""
        split = self.split
        placement = Placement(self.pods, request_id, self.peer, self.source)
        body = split.side_body(self.choice.leg, self.request, placement)
        return split.side_headers(placement), body

    def read(self, answer: EngineAnswer, leases: Leases) -> LegAnswer:
        """Return what the leg was for, which this engine has carried out."""
        attempt = self.attempt
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
