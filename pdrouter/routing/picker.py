"""The picker: from scored candidates to one choice."""

from collections.abc import Sequence
from random import Random

from pdrouter.cluster.load import Ledger
from pdrouter.cluster.pods import Pod
from pdrouter.routing.decision import Choice
from pdrouter.routing.scorers import Scorer


def pick_lowest(
    pods: Sequence[Pod], scorer: Scorer, policy: str, ledger: Ledger, random: Random
) -> Choice | None:
    """Choose the pod with the lowest score, one of them at random where several have it.

    Returns:
        The choice; None if there are no candidates.
    """
    if not pods:
        return None
    scores = [scorer(ledger.load(pod.uid)) for pod in pods]
    lowest = min(scores)
    best = [pod for pod, score in zip(pods, scores, strict=True) if score == lowest]
    return Choice(random.choice(best), policy, lowest, len(pods))
