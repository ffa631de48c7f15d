"""The picker: from scored candidates to one choice."""

from collections.abc import Sequence
from random import Random


def pick_lowest(scores: Sequence[float], random: Random) -> int:
    """Return the index of the lowest score, a random one where several are.

    Raises:
        ValueError: there are no scores.
    """
    lowest = min(scores)
    if scores.count(lowest) == 1:
        return scores.index(lowest)
    return random.choice([index for index, score in enumerate(scores) if score == lowest])
