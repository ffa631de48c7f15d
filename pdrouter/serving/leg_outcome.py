"""What comes of a side leg: its attempts, and an answer, a refusal or a failure in the end."""

from collections.abc import Sequence

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import NOTHING, Leg, PeerFacts
from pdrouter.openai.usage import AnswerMembers, Usage
from pdrouter.serving.statuses import BUSY, Speaks, judge, rank


class Attempt(msgspec.Struct, frozen=True):
    """One try of a leg on one pod.

    Attributes:
        leg: the leg.
        pod: the pod.
        request_id: `x-request-id` of its last POST.
        status: HTTP status; None without an answer.
        failure: what went wrong; None if nothing did, or if the engine refused the request.
        message: details of the failure, or the engine's own words, for the log.
        seconds: how long it took.
        stale_connections: how often a connection turned out to be closed by the engine.
        retry_after_s: seconds after which the engine wants to be asked again; None if it has not
            said so.
        hurried: whether it was over so soon only because other tries had taken the time.
    """

    leg: Leg
    pod: Pod
    request_id: str
    status: int | None
    failure: FailureKind | None
    message: str
    seconds: float
    stale_connections: int
    retry_after_s: float | None = None
    hurried: bool = False

    @property
    def speaks(self) -> Speaks:
        """What it says: that the leg is done, or of what it speaks otherwise."""
        if self.failure is not None or self.status is None:
            return Speaks.FAILURE
        return judge(self.status)

    @property
    def burdens(self) -> bool:
        """Whether more of its kind would burden pods that have failed, or are busy.

        A pod that lacks the key or the adapter says so at once, to whoever asks.
        """
        return self.speaks is Speaks.FAILURE or self.status in BUSY


class LegAnswer(msgspec.Struct, frozen=True):
    """The answer of the engine that has carried out a leg.

    Attributes:
        leg: the leg.
        pod: the engine's pod.
        request_id: `x-request-id` of its request.
        body: body of its answer.
        usage: what that says of the prompt's tokens; None if nothing.
        peer: what was known of the engine when the leg was sent.
        late: whether its handle would come too late.
        members: what was read of its body; None if nothing was, or it is no JSON object.
    """

    leg: Leg
    pod: Pod
    request_id: str
    body: bytes
    usage: Usage | None
    peer: PeerFacts | None = NOTHING
    late: bool = False
    members: AnswerMembers | None = None


class LegRefused(Exception):
    """The engine answered with a 4xx status, and no other pod says otherwise.

    Attributes:
        answer: the engine's answer, for the client.
    """

    def __init__(self, leg: Leg, answer: EngineAnswer) -> None:
        super().__init__(f"the {leg} engine answered {answer.status}")
        self.answer = answer


class LegFailed(Exception):
    """No pod carried out the leg.

    Attributes:
        attempts: what was tried.
        leg: the leg.
        unsplittable: whether the request is why: engines cannot serve its kind in several legs.
        over_budget: whether another pod was not tried, as too many requests are tried again.
        committed: whether another pod could not be tried, as the last leg was on its way.
    """

    def __init__(
        self,
        attempts: tuple[Attempt, ...],
        *,
        unsplittable: bool = False,
        over_budget: bool = False,
    ) -> None:
        super().__init__(attempts[-1].message)
        self.attempts = attempts
        self.leg = attempts[-1].leg
        self.unsplittable = unsplittable
        self.over_budget = over_budget
        self.committed = False


def list_failed(attempts: Sequence[Attempt]) -> list[Pod]:
    """Return the pods that have failed, and did not say that it is not for them."""
    return [attempt.pod for attempt in attempts if attempt.speaks is Speaks.FAILURE]


def choose_refusal(refusals: Sequence[EngineAnswer], *, failures: int) -> EngineAnswer | None:
    """Return which pod's refusal the client gets; None if it may not be the truth.

    If other pods have failed, they might have had what these lack: to be told that the model does
    not exist would send the client away for good.
    """
    told = [answer for answer in refusals if not failures or answer.status in BUSY]
    return max(told, key=lambda answer: rank(answer.status), default=None)
