"""How policies are named that add up to one, each with its weight: `ttft:2,least_request`."""

from collections.abc import Sequence

_MOST_WEIGHT = 1_000_000
Weights = Sequence[tuple[str, int]]
"""Names of policies, each with its weight, in the order in which they were given."""


class CombinationInvalid(ValueError):
    """A text names no policy, or no combination of policies."""


def parse_combination(text: str, known: Sequence[str]) -> Weights:
    """Read `name`, or a list of `name:weight` in which a weight of 1 may be left out.

    A policy with a weight of 0 is dropped; of one that occurs twice, the weights add up.

    Args:
        text: the text.
        known: names that there are.

    Raises:
        CombinationInvalid: it is no such list; the message says why.
    """
    weights: dict[str, int] = {}
    for item in text.split(","):
        name, colon, number = (part.strip() for part in item.partition(":"))
        if name not in known:
            raise CombinationInvalid(f"policy {name[:50]!r} is none of {', '.join(known)}")
        if colon and not (number.isdecimal() and int(number[:8]) <= _MOST_WEIGHT):
            raise CombinationInvalid(
                f"the weight of {name} is no whole number from 0 to {_MOST_WEIGHT}"
            )
        weights[name] = weights.get(name, 0) + (int(number) if colon else 1)
    kept = [(name, weight) for name, weight in weights.items() if weight]
    if not kept:
        raise CombinationInvalid("all weights are 0")
    return kept
