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
        if max(_estimate_usages(pods, request)) > _FULL:
            usages = zip(pods, _estimate_usages(pods, request), strict=True)
            roomy = [pod for pod, usage in usages if usage <= _FULL]
            if roomy:
                notes.append(f"{len(pods) - len(roomy)} decode pods have no room")
                pods = roomy
        if _are_shared(pods, request):
            drawn = _draw_two_each(pods, request.state.random)
            if len(drawn) < len(pods):
                notes.append(f"others send requests too, {len(drawn)} decode pods are drawn")
                pods = drawn
        return pods, f"kv_capacity: {'; '.join(notes)}" if notes else ""

    def score(self, pods: Sequence[Pod], request: RoutedRequest) -> Sequence[float]:
        """Return the requests that each pod would run, and a part more by how full it would be."""
        return [
            count_requests(pod.uid, request) * (1.0 + usage) + usage
            for pod, usage in zip(pods, _estimate_usages(pods, request), strict=True)
        ]


def _are_shared(pods: Sequence[Pod], request: RoutedRequest) -> bool:
    samples = request.state.samples
    return any(samples[pod.uid].others for pod in pods if pod.uid in samples)


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
    ours = request.state.ledger.load(uid).decode_requests
    sample = request.state.samples.get(uid)
    return ours if sample is None else ours + sample.others


def _estimate_usages(pods: Sequence[Pod], request: RoutedRequest) -> list[float]:
    """Return the share of KV memory that each pod would use with the request; 0 if unknown.

    The larger of two views: what the requests in flight will need at their end, and what the engine
    says it uses now.
    """
    samples, load, usages = request.state.samples, request.state.ledger.load, request.usages
    need = request.facts.prompt_tokens + request.facts.output_tokens
    for pod in pods:
        uid = pod.uid
        if uid in usages:
            continue
        sample = samples.get(uid)
        usage = 0.0
        if sample is not None:
            usage = sample.kv_usage or 0.0
            capacity = sample.kv_capacity_tokens
            if capacity:
                reserved = load(uid).decode_tokens / capacity
                usage = (max(usage, reserved)) + need / capacity
        usages[uid] = usage
    return [usages[pod.uid] for pod in pods]
