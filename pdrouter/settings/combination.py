"""How policies, and algorithms, are named that add up: `ttft:2,least_request`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pdrouter.settings.choices import ALGORITHM_NAMES, STRATEGY_NAMES, UNLISTED_ALGORITHMS

_MOST_WEIGHT = 1_000_000
_MOST_DIGITS = 20
_MOST_ITEMS = 64
_SHOWN = 50
Weights = Sequence[tuple[str, int]]
"""Names, each with its weight, in the order in which they were given."""


class CombinationInvalid(ValueError):
    """A text is no name that there is, and no list of such names.

    Attributes:
        reason: what is wrong, for those who see which names there are; empty for a single name that
            is none of them.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


@dataclass(frozen=True, slots=True)
class ChosenStrategy:
    """What a text asks for that names a strategy, or a list of algorithms.

    Attributes:
        weights: the algorithms, each with its weight.
        note: what of the text does not count, for people; empty if all of it does.
    """

    weights: Weights
    note: str = ""


def fold(name: str) -> str:
    """Return a name as it is compared: case, and `-` or `_`, make no difference."""
    return name.strip().lower().replace("_", "-")


def parse_combination(
    text: str, known: Sequence[str], unlisted: Collection[str] = UNLISTED_ALGORITHMS
) -> Weights:
    """Read `name`, or a list of `name:weight` in which a weight of 1 may be left out.

    A policy with a weight of 0 is dropped; of one that occurs twice, the weights add up.

    Args:
        text: the text.
        known: names that there are.
        unlisted: those of them that cannot be added to others.

    Raises:
        CombinationInvalid: it is no such list; the message says why.
    """
    weights = _read_weights(text, known, "policy")
    _check_addable(weights, unlisted)
    return weights


def parse_strategy(text: str, known: Sequence[str] = STRATEGY_NAMES) -> ChosenStrategy:
    """Read the name of a strategy, or a list of algorithms with weights.

    What cannot be added to others, and is no algorithm for one pod (`pd`), replaces the whole list,
    as do the `slo` algorithms.

    Args:
        text: the text.
        known: names that there are.

    Raises:
        CombinationInvalid: it is no such list; the message says why.
    """
    weights = _read_weights(text, known, "routing strategy")
    if len(weights) > 1:
        name = next((name for name, _ in weights if _replaces_lists(name)), None)
        if name is not None:
            return ChosenStrategy(((name, 1),), f"{name} stands alone: the others do not count")
    _check_addable(weights, UNLISTED_ALGORITHMS)
    return ChosenStrategy(weights)


def _replaces_lists(name: str) -> bool:
    return name not in ALGORITHM_NAMES or name.startswith("slo")


def _read_weights(text: str, known: Sequence[str], what: str) -> Weights:
    if text.count(",") >= _MOST_ITEMS:
        raise CombinationInvalid(f"a list has at most {_MOST_ITEMS} items")
    names = {fold(name): name for name in known}
    weights: dict[str, int] = {}
    for item in text.split(","):
        given, colon, number = (part.strip() for part in item.partition(":"))
        name = names.get(fold(given))
        if name is None:
            listed = ", ".join(known)
            unknown = f"{given[:_SHOWN]!r} is none of"
            reason = f"{unknown} these" if "," in text else ""
            raise CombinationInvalid(f"{what} {unknown} {listed}", reason)
        if colon and not _is_weight(number):
            raise CombinationInvalid(
                f"the weight of {name} is no whole number from 0 to {_MOST_WEIGHT}"
            )
        weights[name] = weights.get(name, 0) + (int(number) if colon else 1)
    kept = [(name, weight) for name, weight in weights.items() if weight]
    if not kept:
        raise CombinationInvalid("all weights are 0")
    return kept


def _is_weight(text: str) -> bool:
    digits = text.isascii() and text.isdecimal()
    return digits and len(text) <= _MOST_DIGITS and int(text) <= _MOST_WEIGHT


def _check_addable(weights: Weights, unlisted: Collection[str]) -> None:
    alone = [name for name, _ in weights if name in unlisted]
    if alone and len(weights) > 1:
        raise CombinationInvalid(f"{alone[0]} gives no scores: it cannot be in a list with others")
