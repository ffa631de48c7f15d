"""The decode policy `kv_capacity`: room for the whole answer first, then the least load."""

from collections.abc import Sequence
from random import Random

from pdrouter.cluster.pods import PairingKey, Pod
from pdrouter.routing.policy import RoutedRequest

_FULL = 0.95
"""Share of KV memory above which engines begin to preempt."""


class KVCapacity:
    """Scores a pod by how full and how busy it would be with the request.

    What this router has sent is known at once, from the ledger; what others have sent shows in the
    engine's own numbers, a little later. Until then, all routers would send to the same pod: where
    there are others, each takes the better of two pods drawn at random from each roleset. A pod
    without room gets a request only if no other has any.
    """

    name = "kv_capacity"

    def narrow(self, pods: Sequence[Pod], request: RoutedRequest) -> tuple[Sequence[Pod], str]:
        """Return the pods that have room for prompt and answer; all of them if none has.

        Of these, two of each roleset if others send requests too.
        """
        notes = []
        usages, shared = _look_at(pods, request)
        if max(usages) > _FULL:
            roomy = [pod for pod, usage in zip(pods, usages, strict=True) if usage <= _FULL]
            if roomy:
                notes.append(f"{len(pods) - len(roomy)} decode pods have no room")
                pods = roomy
                _, shared = _look_at(pods, request)
        if shared:
            drawn = _draw_two_each(pods, request.state.random)
            if len(drawn) < len(pods):
                notes.append(f"others send requests too, {len(drawn)} decode pods are drawn")
                pods = drawn
        return pods, f"kv_capacity: {'; '.join(notes)}" if notes else ""

    def score(self, pods: Sequence[Pod], request: RoutedRequest) -> Sequence[float]:
        """Return the requests that each pod would run, and a part more by how full it would be."""
        usages, _ = _look_at(pods, request)
        return [
            count_requests(pod.uid, request) * (1.0 + usage) + usage
            for pod, usage in zip(pods, usages, strict=True)
        ]


def _draw_two_each(pods: Sequence[Pod], random: Random) -> Sequence[Pod]:
    """Return two pods of each roleset, at random; fewer where there are fewer."""
    rolesets: dict[PairingKey, list[Pod]] = {}
    for pod in pods:
        rolesets.setdefault(pod.pairing, []).append(pod)
    return [
        pod for members in rolesets.values() for pod in random.sample(members, min(2, len(members)))
    ]


def count_requests(uid: str, request: RoutedRequest) -> float:
    """Return the requests in flight on a pod: ours, and those of others as last seen."""
    load = request.state.ledger.loads.get(uid)
    ours = 0 if load is None else load.decode_requests
    sample = request.state.samples.get(uid)
    return ours if sample is None else ours + sample.others


def _look_at(pods: Sequence[Pod], request: RoutedRequest) -> tuple[list[float], bool]:
    """Return what pods that are to decode the request say of themselves.

    Returns:
        The share of KV memory that each would use with the request, 0 if that is unknown. It is the
        larger of two views: what the requests in flight will need at their end, and what the engine
        says it uses now. And whether others than this router send requests to any of them.
    """
    samples, loads = request.state.samples, request.state.ledger.loads
    need = request.facts.prompt_tokens + request.facts.output_tokens
    usages, shared = [], False
    for pod in pods:
        sample = samples.get(pod.uid)
        usage = 0.0
        if sample is not None:
            if sample.others:
                shared = True
            usage = sample.kv_usage or 0.0
            capacity = sample.kv_capacity_tokens
            if capacity:
                load = loads.get(pod.uid)
                if load is not None:
                    usage = max(load.decode_tokens / capacity, usage)
                usage += need / capacity
        usages.append(usage)
    return usages, shared
