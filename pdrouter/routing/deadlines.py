"""When the first token of a request is due, and which number tells engines so.

A deadline is a moment, not a rank: who waits comes nearer to it, and passes everybody who comes so
much later that he is due later. So no class of requests starves another, however busy it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from pdrouter.load.prefill_rates import PrefillRates


class Deadline(msgspec.Struct, frozen=True):
    """When a request's first token is due.

    Attributes:
        due: that moment, on the clock of the ledger.
        target_s: how long that is after the request came.
        source: who wants it so; empty where nobody does, and it only orders the engines' queues.
    """

    due: float
    target_s: float
    source: str = ""

    @property
    def binding(self) -> bool:
        """Whether somebody has asked for it."""
        return bool(self.source)


@dataclass(frozen=True, slots=True)
class DeadlineRules:
    """What an operator decides about requests that say nothing of when they are due.

    Attributes:
        default_s: how long after it came a request is due.
        factor: how many times what its own prompt takes it may take beside that.
        classes: seconds until the first token of each class.
    """

    default_s: float = 1.0
    factor: float = 2.0
    classes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def assume_deadline(
    rules: DeadlineRules, prompt_tokens: int, rates: PrefillRates, came: float
) -> Deadline:
    """Return when a request is due that does not say so: a long prompt may take longer.

    Args:
        rules: what the operator decided.
        prompt_tokens: length of the prompt.
        rates: how fast pods are.
        came: when the request came.
    """
    own_s = rates.measure(prompt_tokens, rates.default) * rates.unit_s
    target_s = rules.default_s + rules.factor * own_s
    return Deadline(came + target_s, target_s)


def number_deadline(deadline: Deadline, now: float, wall_s: float) -> int:
    """Return the number that tells engines when a request is due: milliseconds since 1970.

    All routers give the same for the same moment, as far as their clocks agree.

    Args:
        deadline: when it is due.
        now: the moment, on the clock of the deadline.
        wall_s: the same moment, in seconds since 1970.
    """
    return round((wall_s + deadline.due - now) * 1000)
