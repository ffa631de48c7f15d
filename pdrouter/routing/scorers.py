"""Scores for candidates: lower is better, and adding load to a pod never lowers its score."""

from collections.abc import Callable

from pdrouter.cluster.load import PodLoad

Scorer = Callable[[PodLoad], float]
"""Gives the score of a pod under that load."""


def outstanding_prefill_tokens(load: PodLoad) -> float:
    """Prompt tokens that wait or run in prefill: long prompts count for what they cost."""
    return load.prefill_tokens


def requests_in_flight(load: PodLoad) -> float:
    """Requests whose tokens the pod generates."""
    return load.decode_requests
