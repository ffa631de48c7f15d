"""How an engine's wire hangs the legs of a request together: the contract of these modules."""

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum, auto
from typing import NamedTuple, Protocol

from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest


class Leg(StrEnum):
    """The part of a request that a pod carries out."""

    PREFILL = "prefill"
    DECODE = "decode"
    """What Envoy sends: a decode leg, or a whole request."""


class Order(Enum):
    """When the last leg is sent."""

    SERIAL = auto()
    """Once the side legs are answered: it needs what they say."""
    TOGETHER = auto()
    """Once the side leg is on its way: they meet by an id, and wait for each other."""


class EnginePod(Protocol):
    """What a wire needs to know of a pod."""

    @property
    def ip(self) -> str:
        """IPv4 or IPv6 address, without brackets."""

    @property
    def bootstrap_port(self) -> int | None:
        """Port at which other engines meet it; None for their own default."""


class Placement(NamedTuple):
    """Where the legs of one attempt run.

    Attributes:
        pods: the pods by leg.
        request_id: the `x-request-id` of the attempt, which no other has: a wire whose legs meet by
            an id makes theirs of it.
    """

    pods: Mapping[Leg, EnginePod]
    request_id: str


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
    """How one wire splits a request. Pure; no body is copied."""

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
        """Reasons to serve requests whole (`find_misfit`) that are none on this wire."""

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the body of a side leg."""

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

    def find_expiry(self, answer: SideAnswer) -> float | None:
        """Return when the blocks of a handle are freed; None if the answer does not say so.

        In seconds since 1970, by the engine's clock; what is far from now is of another clock.
        """

    def release(self, answer: SideAnswer) -> Release | None:
        """Return what has the blocks freed that an answer speaks of; None if there is no way.

        No engine of the last leg may have been given them.
        """


PREFILL_DECODE = (Leg.PREFILL, Leg.DECODE)
