"""The decode policy `kv_capacity`: room for the whole answer first, then the least load."""

from collections.abc import Sequence
from random import Random

import msgspec

from pdrouter.cluster.pods import PairingKey, Pod
from pdrouter.engines.split import Leg
from pdrouter.load.legs_in_flight import LegLoad
from pdrouter.load.samples import EngineSample
from pdrouter.routing.policy import Ranking, RankingRequest
from pdrouter.routing.score_parts import DecodeParts

FULL = 0.95
"""Share of KV memory above which engines begin to preempt."""

_IDLE = LegLoad()
# Looked up once, as in `ledger.py`.
_DECODE = Leg.DECODE


class KVCapacity:
    """Scores a pod by how full and how busy it would be with the request.

    What this router has sent is known at once, from the ledger; what others have sent shows in the
    engine's own numbers, a little later. Until then, all routers would send to the same pod: where
    there are others, each takes the better of two pods drawn at random from each roleset. A pod
    without room gets a request only if no other has any.
    """

    name = "kv_capacity"

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return the pods that have room for prompt and answer; all of them if none has.

        Of these, two of each roleset if others send requests too. The score is the requests that a
        pod would run, and a part more by how full it would be.
        """
        notes = []
        look = _look_at(pods, request)
        if max(look.usages) > FULL:
            roomy = [pod for pod, usage in zip(pods, look.usages, strict=True) if usage <= FULL]
            if roomy:
                notes.append(f"{len(pods) - len(roomy)} decode pods have no room")
                pods, look = roomy, _look_at(roomy, request)
        usages, scores = look.usages, look.scores
        if look.shared:
            drawn = _draw_two_each(pods, request.state.random)
            if len(drawn) < len(pods):
                notes.append(f"others send requests too, {len(drawn)} decode pods are drawn")
                pods = [pods[index] for index in drawn]
                usages = [usages[index] for index in drawn]
                scores = [scores[index] for index in drawn]
        note = f"kv_capacity: {'; '.join(notes)}" if notes else ""
        return Ranking(pods, scores, note, DecodeParts(usages))


def _draw_two_each(pods: Sequence[Pod], random: Random) -> Sequence[int]:
    """Return the indexes of two pods of each roleset, at random; fewer where there are fewer."""
    rolesets: dict[PairingKey, list[int]] = {}
    for index, pod in enumerate(pods):
        rolesets.setdefault(pod.pairing, []).append(index)
    return [
        index
        for members in rolesets.values()
        for index in random.sample(members, min(2, len(members)))
    ]


def count_requests(uid: str, request: RankingRequest) -> float:
    """Return the requests in flight on a pod: ours, and those of others as last seen."""
    load = request.state.ledger.loads[_DECODE].get(uid)
    ours = 0 if load is None else load.requests
    sample = request.state.samples.get(uid)
    return ours if sample is None else ours + sample.others


def find_usage(sample: EngineSample, load: LegLoad, need: int) -> float:
    """Return the share of KV memory that a pod would use with so many tokens more."""
    capacity = sample.kv_capacity_tokens
    if not capacity:
        return sample.kv_usage or 0.0
    return (max(sample.kv_used_tokens, load.tokens) + need) / capacity


class _Look(msgspec.Struct, frozen=True):
    """What is to be seen of pods that are to decode a request.

    Attributes:
        usages: the share of KV memory that each would use with the request, 0 if that is unknown.
            It is the larger of two views: what the requests in flight will need at their end, and
            what the engine says it uses now.
        scores: the score of each.
        shared: whether others than this router send requests to any of them.
    """

    usages: Sequence[float]
    scores: Sequence[float]
    shared: bool


def _look_at(pods: Sequence[Pod], request: RankingRequest) -> _Look:
    # One loop for everything: it is gone through for every decode pod.
    samples, loads = request.state.samples, request.state.ledger.loads[_DECODE]
    need = request.facts.prompt_tokens + request.facts.output_tokens
    usages: list[float] = []
    scores: list[float] = []
    shared = False
    for pod in pods:
        uid = pod.uid
        load, sample = loads.get(uid, _IDLE), samples.get(uid)
        requests: float = load.requests
        usage = 0.0
        if sample is not None:
            others, capacity = sample.others, sample.kv_capacity_tokens
            if others:
                shared = True
                requests += others
            if capacity:
                used, reserved = sample.kv_used_tokens, load.tokens
                tokens = used if used > reserved else reserved  # noqa: FURB136 -- max() takes longer
                usage = (tokens + need) / capacity
            else:
                usage = sample.kv_usage or 0.0
        usages.append(usage)
        scores.append(requests * (1.0 + usage) + usage)
    return _Look(usages, scores, shared)
