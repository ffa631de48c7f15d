"""How an engine's wire hangs the legs of a request together: the contract of these modules."""

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum, auto
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.usage import AnswerMembers


class Leg(StrEnum):
    """The part of a request that a pod carries out."""

    ENCODE = "encode"
    """One item of a prompt that is no text: a request may have several, or none."""
    PREFILL = "prefill"
    DECODE = "decode"
    """What Envoy sends: a decode leg, or a whole request."""


class Order(Enum):
    """When the last leg is sent."""

    SERIAL = auto()
    """Once the side legs are answered: it needs what they say."""
    TOGETHER = auto()
    """Once the side leg is on its way: they meet by an id, and wait for each other. As long as what
    the wire must know of the side leg's engine (`needs_peer`) is not known, once it is answered."""


PeerFacts: TypeAlias = Mapping[str, bytes]
"""What a wire knows of the engine of a side leg: JSON values, by names that are the wire's own."""

NOTHING: PeerFacts = MappingProxyType({})
"""No facts, where none are needed."""


PEER_CHANGED = "peer-changed"
"""The reason of `HandoffInvalid` where a side leg's engine is not the one of which the last leg's
was told."""


class Inquiry(NamedTuple):
    """What the engine of a side leg is asked with GET before its first leg is sent.

    Attributes:
        port: where it answers; None for where it serves everything else.
        path: the path.
        timeout_s: seconds for the answer.
    """

    port: int | None
    path: str
    timeout_s: float


class EnginePod(Protocol):
    """What a wire needs to know of a pod."""

    @property
    def ip(self) -> str:
        """IPv4 or IPv6 address, without brackets."""

    @property
    def bootstrap_port(self) -> int | None:
        """Port at which other engines meet it; 0 for the wire's own, None for their default."""

    @property
    def number(self) -> int | None:
        """Its number among the data-parallel ranks behind its address; None for any."""

    @property
    def ranks(self) -> int:
        """How many data-parallel ranks are behind its address, as far as that is known."""

    @property
    def index(self) -> int:
        """Its number among the ranks of its engine, whether or not they share an address."""


class Placement(msgspec.Struct, frozen=True):
    """Where the legs of one attempt run.

    Attributes:
        pods: the pods by leg.
        request_id: the `x-request-id` of the attempt, which no other has: a wire whose legs meet by
            an id makes theirs of it.
        peer: what is known of the engine of the side leg; None while that is less than is needed.
        source: another pod that has more of the prompt cached than that of the side leg, where the
            wire takes one (`takes_source`); None where none has.
    """

    pods: Mapping[Leg, EnginePod]
    request_id: str
    peer: PeerFacts | None = NOTHING
    source: EnginePod | None = None


class SideAnswer(Protocol):
    """The answer to a side leg."""

    @property
    def leg(self) -> Leg:
        """The leg."""

    @property
    def pod(self) -> EnginePod:
        """The pod that gave it."""

    @property
    def body(self) -> bytes:
        """Its body."""

    @property
    def members(self) -> AnswerMembers | None:
        """What was read of that; None if nothing was, or it is no JSON object."""


class HandoffInvalid(Exception):
    """The answer to a side leg holds nothing that the engine of the last leg can work with.

    Attributes:
        reason: a short, bounded word for metrics, such as `null-params`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Release(NamedTuple):
    """A request that has blocks freed which no engine of a last leg will fetch.

    Attributes:
        path: where an engine of the last leg takes it.
        body: its body.
    """

    path: str
    body: Pieces


class Split(Protocol):
    """How one wire splits a request. Pure; no body is copied.

    Those that need no more than bodies inherit the rest from here.
    """

    @property
    def name(self) -> str:
        """Name of the wire in logs and findings."""

    @property
    def legs(self) -> tuple[Leg, ...]:
        """The legs in the order in which they run; Envoy sends the last."""

    @property
    def order(self) -> Order:
        """When the last leg is sent."""

    @property
    def fits(self) -> frozenset[str]:
        """Reasons to serve requests whole (`list_misfits`) that are none on this wire."""

    @property
    def needs_peer(self) -> bool:
        """Whether something must be known of a side leg's engine before legs can run at once."""
        return False

    @property
    def takes_source(self) -> bool:
        """Whether the engine of a side leg can have the beginning of a prompt from any other."""
        return False

    @property
    def recomputes(self) -> bool:
        """Whether an engine that waits for blocks in vain computes the prompt, and says nothing."""
        return False

    @property
    def trusts_head(self) -> bool:
        """Whether the head of a side leg's answer says that the last leg does not wait in vain.

        Otherwise, all of it is awaited before the client sees anything.
        """
        return True

    @property
    def paths(self) -> frozenset[str]:
        """The only paths whose requests can be split on this wire; none for all that have legs."""
        return _ALL_PATHS

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the body of a side leg."""

    def side_headers(self, placement: Placement) -> Mapping[str, str]:
        """Return headers of a side leg, beside the client's."""
        del placement
        return _NO_HEADERS

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the body of the last leg.

        Args:
            request: the request.
            placement: where its legs run.
            answers: those of the side legs, in their order; none where all run at once.

        Raises:
            HandoffInvalid: an answer must not be handed to the engine of the last leg.
        """

    def find_final_answer(self, answers: Sequence[SideAnswer]) -> bytes | None:
        """Return the client's answer, if the side legs have left nothing to do for the last one.

        It is one to a request that is not streamed. None where the last leg is to be sent.
        """
        del answers
        return None

    def find_expiry(self, answer: SideAnswer) -> float | None:
        """Return when the blocks of a handle are freed; None if the answer does not say so.

        In seconds since 1970, by the engine's clock; what is far from now is of another clock.
        """
        del answer
        return None

    def last_headers(
        self, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Mapping[str, str]:
        """Return headers of the last leg, beside the client's. Not asked where `last_body` fails.

        Args:
            placement: where its legs run.
            answers: those of the side legs, as for its body.
        """
        del placement, answers
        return _NO_HEADERS

    def inquire(self, pod: EnginePod) -> Inquiry | None:
        """Return what a side leg's engine is asked once; None if its answers must tell."""
        del pod
        return None

    def read_peer(self, pod: EnginePod, body: bytes) -> PeerFacts:
        """Return what the answer to an inquiry of a pod says.

        Raises:
            HandoffInvalid: it says nothing that can be used.
        """
        del pod, body
        return NOTHING

    def learn_peer(self, answer: SideAnswer) -> PeerFacts | None:
        """Return what the answer to a side leg says of its engine; None if nothing."""
        del answer
        return None

    def check_companion(self, answer: SideAnswer, placement: Placement) -> None:
        """Check the answer to a side leg that ran beside the last one.

        Raises:
            HandoffInvalid: the engine of the last leg waits in vain.
        """
        del answer, placement

    def release(self, answer: SideAnswer) -> Release | None:
        """Return what has the blocks freed that an answer speaks of; None if there is no way.

        No engine of the last leg may have been given them.
        """
        del answer
        return None


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_ALL_PATHS: frozenset[str] = frozenset()
PREFILL_DECODE = (Leg.PREFILL, Leg.DECODE)
