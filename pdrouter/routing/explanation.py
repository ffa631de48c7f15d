"""A decision in detail: candidates, scores, and what filtered whom."""

from collections.abc import Sequence
from typing import Any

from pdrouter.cluster.pods import Pod
from pdrouter.routing.decision import Choice, Decision

_SHOWN_CANDIDATES = 50


def describe_in_detail(decision: Decision) -> dict[str, Any]:
    """Return a decision with its candidates and their scores."""
    return {
        "decision": decision.kind,
        "reason": decision.reason,
        "notes": decision.notes,
        "prefill": _describe_choice(decision.prefill),
        "decode": _describe_choice(decision.decode),
    }


def _describe_choice(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "pod": choice.pod.name,
        "policy": choice.policy,
        "tokens": choice.tokens,
        "candidates": len(choice.candidates),
        "scores": _rank(choice.candidates, choice.scores),
    }


def _rank(pods: Sequence[Pod], scores: Sequence[float]) -> dict[str, float]:
    """Return the scores by pod, the best first; of many, the best ones."""
    ranked = sorted(zip(scores, (pod.name for pod in pods), strict=True))
    return {name: round(score, 6) for score, name in ranked[:_SHOWN_CANDIDATES]}
