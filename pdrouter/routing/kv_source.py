"""The source of a prompt's beginning: another pod that has cached more of it than the chosen one.

Where engines can fetch KV blocks from each other, a prefill pod need not compute what another pod
has: load may decide where a prompt is computed, without forgetting what is known of it elsewhere.
"""

from collections.abc import Collection

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import count_computed
from pdrouter.routing.state import RoutingState

DEFAULT_LEAST_TOKENS = 256


def find_kv_source(
    chosen: Pod,
    facts: RoutingFacts,
    pods: ModelPods,
    state: RoutingState,
    *,
    least_tokens: int = DEFAULT_LEAST_TOKENS,
    avoided: Collection[str] = (),
) -> Pod | None:
    """Return the pod that has most of a prompt cached; None if fetching it saves too little.

    Like the chosen one, it is a ready prefill pod of the model, of the same roleset and version,
    and has the same connector; blocks of others mean nothing to its engine, or cannot be fetched.
    It has not failed of late, and is one that the client would have been given.

    Args:
        chosen: the pod that computes the prompt.
        facts: the request.
        pods: the model's pods.
        state: their condition.
        least_tokens: tokens that it must have beyond what the chosen one has.
        avoided: UIDs of pods that it must not be.
    """
    matches = state.prefixes.match(facts.prefix.hashes)
    own = matches.get(chosen.uid, 0)
    needed = count_computed(facts, own) - least_tokens
    candidates = [
        pod
        for pod in pods.prefill
        if (blocks := matches.get(pod.uid, 0)) > own
        and count_computed(facts, blocks) <= needed
        and _is_compatible(pod, chosen)
        and pod.uid not in avoided
        and (facts.selector is None or facts.selector.matches(pod.labels))
    ]
    if candidates and not state.failures.calm:
        troubles = state.failures.look(pods.model)[Leg.PREFILL]
        candidates = [pod for pod in candidates if pod.uid not in troubles]
    if not candidates:
        return None
    return candidates[pick_lowest([-matches[pod.uid] for pod in candidates], state.random)]


def _is_compatible(pod: Pod, chosen: Pod) -> bool:
    return pod.pairing == chosen.pairing and pod.kv_connector == chosen.kv_connector
