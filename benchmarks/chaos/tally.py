"""What became of the requests, and which promises were broken."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

_EXAMPLES = 20


class Breach(StrEnum):
    """How a promise can be broken."""

    CONTRACT = "an engine saw a broken contract"
    UNANSWERED = "no answer by the deadline"
    MALFORMED_ERROR = "a malformed error"
    ACCEPTED = "an invalid request gets another error"
    ALTERED = "an altered body"
    WRONG_ANSWER = "a wrong answer"
    UNENDED = "a stream without its last event"
    CUT = "an answer cut without a cause"
    MIXED_PAIR = "a pair of two rolesets"
    LEFT_IN_ROUTER = "something left in a router"
    LEFT_IN_ENGINE = "something left in an engine"
    GROWTH = "memory or descriptors that grow"
    ACCIDENT = "an accident in the log"
    NO_RECOVERY = "no recovery when all is well"
    UNACCOUNTED = "a request that is not accounted for"


@dataclass(slots=True)
class Tally:
    """Counts of one run.

    Attributes:
        answered: whole answers, each the right one.
        left: requests whose client left, by when it did.
        refused: invalid requests that were refused as such.
        errors: errors that clients got, by status and code.
        cut: answers and connections that were cut because something had ended.
        disturbances: what went wrong, by kind.
        broken: broken promises, by kind.
        examples: the first of them in detail.
    """

    answered: int = 0
    left: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    broken: Counter[Breach] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests are accounted for, broken promises among them."""
        counters = (self.left, self.errors, self.cut)
        return self.answered + self.refused + sum(map(Counter.total, counters))

    def note_broken(self, breach: Breach, detail: str, count: int = 1) -> None:
        """Note that a promise was broken."""
        self.broken[breach] += count
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{breach}: {detail}")
