"""A decision in detail: candidates, scores and what they are made of, and what filtered whom."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Choice, Decision

_SHOWN_CANDIDATES = 50
_FIRST_ANSWER = "seconds: predicted time to the first token"
_ONE_POD = (Leg.PREFILL, Leg.DECODE)
_UNITS: Mapping[str, str] = MappingProxyType(
    {
        "ttft": "seconds: (wait_s + compute_weight * compute_s) * away_factor",
        "kv_capacity": "requests * (1 + kv_usage_share) + kv_usage_share",
        "least_request": "requests",
        "least-request": "requests",
        "prefix-cache": "percent not cached + share of the busiest pod's requests",
        "least-busy-time": "share of its time in which a pod has had requests",
        "least-gpu-cache": "share of KV memory in use",
        "least-kv-cache": "share of KV memory in use + share of the host's memory for blocks",
        "least-utilization": "share of what an engine can do, or of KV memory",
        "least-latency": "seconds: queue, prefill and decode of a usual request",
        "throughput": "tokens per second, those of prompts twice",
        "power-of-two": "requests, of two pods drawn at random",
        "prefix-cache-preble": "requests of late where most is cached; or what they have cost",
        "slo": _FIRST_ANSWER,
        "slo-pack-load": "requests less than the busiest pod in time has, or " + _FIRST_ANSWER,
        "slo-least-load": _FIRST_ANSWER,
        "slo-least-load-pulling": _FIRST_ANSWER,
        "vtc-basic": "pods away from the user's place, and the share of a full load",
        "conductor": "milliseconds",
        "prefix_cache": "0.1 * percent not cached + share of the busiest pod's requests",
        "load_balancing": "weighted shares of the busiest and the fastest pod, by free memory",
        "random": "none: all are alike",
        "session-affinity": "place in the session's order of pods; or requests, without a session",
        "when-faster": "seconds: wait_s + compute_s",
        "combined": "seconds until all requests that wait have begun",
    }
)
_COMBINED = "weighted sum of the policies' scores, each from 0 (best pod) to 1"


def describe_in_detail(decision: Decision, shown: int = _SHOWN_CANDIDATES) -> dict[str, Any]:
    """Return a decision with its candidates, their scores, and what these are made of.

    Args:
        decision: the decision.
        shown: how many candidates of each leg are shown at the most.
    """
    return {
        "decision": decision.kind,
        "reason": decision.reason,
        "notes": decision.notes,
        **({} if decision.ways is None else {"ways": decision.ways.describe()}),
        **({} if decision.session is None else {"session": decision.session}),
        str(Leg.ENCODE): _describe_encoders(decision.encode, shown),
        **{str(leg): _describe_choice(decision.find(leg), shown) for leg in _ONE_POD},
    }


def _describe_encoders(choices: Sequence[Choice], shown: int) -> dict[str, Any] | None:
    """Return which pods encode how many items; each item has a score of its own for each pod."""
    if not choices:
        return None
    pods = Counter(choice.pod.name for choice in choices)
    return {
        "items": len(choices),
        "policy": choices[0].policy,
        "candidates": len(choices[0].candidates),
        "pods": dict(pods.most_common(shown)),
    }


def _describe_choice(choice: Choice | None, shown: int) -> dict[str, Any] | None:
    if choice is None:
        return None
    pods, scores = choice.candidates, choice.scores
    ranked = sorted(range(len(pods)), key=lambda index: (scores[index], pods[index].name))
    numbered = [(index, scores[index]) for index in ranked[:shown]]
    described: dict[str, Any] = {
        "pod": choice.pod.name,
        "policy": choice.policy,
        "tokens": choice.tokens,
        "candidates": len(pods),
        "unit": _UNITS.get(choice.policy, _COMBINED if "," in choice.policy else ""),
        "scores": {pods[index].name: round(score, 6) for index, score in numbered},
    }
    if choice.seconds is not None:
        described["predicted_s"] = round(choice.seconds, 6)
    if choice.parts is not None:
        describe = choice.parts.describe
        described["parts"] = {
            pods[index].name: describe(index, pods[index].uid, score) for index, score in numbered
        }
    return described
