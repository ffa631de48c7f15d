"""What a strategy is asked, and what it answers."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.whole_serving import ENOUGH_ANSWERS
from pdrouter.openai.prompt_prefix import NO_PREFIX, PromptPrefix
from pdrouter.openai.sessions import Session
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.label_selector import LabelSelector
from pdrouter.routing.session_affinity import SessionOutcome
from pdrouter.routing.state import RoutingState

# Looked up once, as in `ledger.py`.
_PREFILL = Leg.PREFILL


class RoutingFacts(msgspec.Struct, frozen=True):
    """What a strategy needs to know of a request.

    Attributes:
        prompt_tokens: length of the prompt, as estimated.
        whole: why one pod must serve the request; None where it may be split.
        prefix: the blocks of the prompt.
        output_tokens: length of the answer, as expected.
        usual_output_tokens: that of the model's answers; 0 where it is not known.
        selector: labels that pods must have; None for any.
        items: digests of its media, each once, where engines may encode them for others.
        user: name of who asks; empty for nobody in particular.
        algorithms: names of the algorithms and policies that choose its pods.
        profile: name of the profile by which pods say what they are for; empty for the default one.
        prefill_policy: policy that the model asks for; empty for the router's own.
        decode_policy: likewise.
        deadline: when its first token is due; None for no such time.
        session: the session that it belongs to; None where it names none.
        holder: UID of the pod that holds what it goes on with, and must serve it; empty for none.
        kept: whether the pod that serves it keeps the answer, and is named in its id.
    """

    prompt_tokens: int
    whole: str | None
    prefix: PromptPrefix = NO_PREFIX
    output_tokens: int = 0
    selector: LabelSelector | None = None
    profile: str = ""
    prefill_policy: str = ""
    decode_policy: str = ""
    usual_output_tokens: int = 0
    deadline: Deadline | None = None
    items: tuple[str, ...] = ()
    user: str = ""
    session: Session | None = None
    holder: str = ""
    algorithms: frozenset[str] = frozenset()
    kept: bool = False

    @property
    def due(self) -> float | None:
        """When its first token is due, on the clock of the ledger; None for no such time."""
        return None if self.deadline is None else self.deadline.due


class ScoreParts(Protocol):
    """What scores are made of, for people."""

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return the parts of a candidate's score, by names that end in their units.

        Args:
            index: which candidate it is.
            uid: its UID.
            score: its score.
        """


class Choice(msgspec.Struct, frozen=True):
    """The pod that was chosen for a leg, and why.

    Attributes:
        leg: what it is to do.
        pod: the pod.
        policy: the scoring rule that chose it.
        score: its score; lower is better.
        candidates: the pods there were to choose from.
        scores: their scores, in the same order.
        tokens: what the request costs there: for prefill, prompt tokens to compute; for decode,
            tokens that need KV memory.
        seconds: predicted time until the pod has done its prefill; where it serves the request
            whole to be faster, of computing alone; None for others.
        parts: what the scores are made of; None where that is not told.
    """

    leg: Leg
    pod: Pod
    policy: str
    score: float
    candidates: Sequence[Pod]
    scores: Sequence[float]
    tokens: int
    seconds: float | None = None
    parts: ScoreParts | None = None


class Ways(msgspec.Struct, frozen=True):
    """What was predicted for a request that may go two ways: over two pods, or to a decode pod.

    Attributes:
        prefill_s: seconds until the prefill pod would have computed the prompt, its queue included.
        handover_s: seconds from there to the first token; None if it has not been measured.
        whole_s: seconds to the first token on the best decode pod alone; None if none may.
        obstacle: why none may, for people.
        pod: the name of that decode pod.
        compute_s: seconds of `whole_s` for which it computes the prompt.
        answers: of how many answers the hand-over has been measured, while these are too few.
    """

    prefill_s: float
    handover_s: float | None
    whole_s: float | None
    obstacle: str = ""
    pod: str = ""
    compute_s: float = 0.0
    answers: int = 0

    @property
    def two_legs_s(self) -> float:
        """Seconds to the first token over two pods."""
        return self.prefill_s + (self.handover_s or 0.0)

    def describe(self) -> dict[str, float | str | None]:
        """Return it for people."""
        obstacle = self.obstacle
        if self.handover_s is None:
            told = f"{self.answers} of {ENOUGH_ANSWERS} answers are measured"
            obstacle = f"the hand-over is not known: {told}"
        described: dict[str, float | str | None] = {
            "two_legs_s": None if self.handover_s is None else round(self.two_legs_s, 6),
            "whole_s": None if self.whole_s is None else round(self.whole_s, 6),
        }
        return described | ({"obstacle": obstacle} if obstacle else {"pod": self.pod})


class DecisionKind(StrEnum):
    """How a request is served."""

    DISAGGREGATED = "disaggregated"
    AGGREGATED = "aggregated"


class Decision(msgspec.Struct, frozen=True):
    """The pods that serve a request.

    Attributes:
        side: the legs that the router sends, in the order in which the request comes to them; none
            where one pod serves the request whole.
        last: the leg that Envoy sends.
        reason: why the request is served whole; empty where it is not.
        notes: what filtered whom, for people.
        encode: the pods that encode its media, in the order of the request's items; none where the
            pod that computes the prompt encodes them.
        ways: what was predicted for both ways; None where they were not compared.
        session: what became of its session; None where sessions were not looked at.
    """

    side: tuple[Choice, ...]
    last: Choice
    reason: str = ""
    notes: tuple[str, ...] = ()
    encode: tuple[Choice, ...] = ()
    ways: Ways | None = None
    session: SessionOutcome | None = None

    @property
    def legs(self) -> tuple[Choice, ...]:
        """All legs, in the order in which the request comes to them."""
        return (*self.side, self.last)

    @property
    def whole(self) -> bool:
        """Whether one pod serves the request."""
        return not self.side

    def find(self, leg: Leg) -> Choice | None:
        """Return what was chosen for a leg; None if the request has none of its own."""
        for choice in self.side:
            if choice.leg is leg:
                return choice
        return self.last if self.last.leg is leg else None

    @property
    def pods(self) -> Mapping[Leg, Pod]:
        """The pods by leg."""
        pods = {choice.leg: choice.pod for choice in self.side}
        pods[self.last.leg] = self.last.pod
        return pods

    @property
    def prefill(self) -> Choice | None:
        """The prefill leg, for the policies that weigh it; None where there is none."""
        for choice in self.side:
            if choice.leg is _PREFILL:
                return choice
        return None

    @property
    def taker(self) -> Pod:
        """The pod that computes the prompt, and takes what others have encoded."""
        return self.legs[0].pod

    def move_last(self, pod: Pod) -> "Decision":
        """Return the decision with another of its candidates for the last leg."""
        last = self.last
        scores = zip(last.candidates, last.scores, strict=True)
        score = next((score for each, score in scores if each.uid == pod.uid), last.score)
        moved = structs.replace(last, pod=pod, score=score)
        note = f"Envoy has not reached {last.leg} pod {last.pod.name}, and taken {pod.name}"
        notes = (*self.notes, note)
        return structs.replace(self, last=moved, notes=notes)

    @property
    def kind(self) -> DecisionKind:
        """How the request is served."""
        return DecisionKind.AGGREGATED if self.whole else DecisionKind.DISAGGREGATED


class NoReadyPod(Exception):
    """There is no ready pod for a part of the request.

    Attributes:
        role: the role that is missing.
    """

    def __init__(self, model: str, role: Role, prompt_tokens: int | None = None) -> None:
        """Describe what is missing.

        Args:
            model: name of the model.
            role: the role that is missing.
            prompt_tokens: length of the prompt, where that is why no pod will do.
        """
        partner = ""
        if role is Role.PREFILL:
            partner = " with a ready decode pod of its version in its roleset"
        length = "" if prompt_tokens is None else f" and prompts of about {prompt_tokens} tokens"
        super().__init__(f"no ready {role} pod{partner} for model {model!r}{length}")
        self.role = role


class Strategy(Protocol):
    """A named routing algorithm. Pure: load, time and randomness are passed in."""

    @property
    def name(self) -> str:
        """Name in `ROUTING_ALGORITHM` and in the `routing-strategy` header."""

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose the pods for a request.

        Raises:
            NoReadyPod: a pod that the request needs is not there.
        """

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        """Return the names of the algorithms and policies that it goes by.

        Args:
            prefill_policy: policy that the model asks for; empty for the router's own.
            decode_policy: likewise.
        """
