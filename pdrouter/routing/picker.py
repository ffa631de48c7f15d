"""The picker: from scored candidates to one choice."""

from collections.abc import Sequence
from random import Random

from pdrouter.cluster.pods import Pod


def pick_lowest(pods: Sequence[Pod], scores: Sequence[float], random: Random) -> int:
    """Return the index of the pod with the lowest score, a random one where several have it.

    Raises:
        ValueError: there are no pods.
    """
    lowest = min(scores)
    if scores.count(lowest) == 1:
        return scores.index(lowest)
    return random.choice([index for index, score in enumerate(scores) if score == lowest])
