"""The `pd` strategy: one pod for prefill, one for decode, from the same roleset."""

import math

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.aibrix.bucketing import apply_buckets, apply_buckets_whole
from pdrouter.routing.combination import PolicyBook
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.filters import keep_encoded, keep_selected
from pdrouter.routing.pairs import pick_pair
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import DecodePolicy, PrefillPolicy, Ranking, RankingRequest
from pdrouter.routing.scoring import list_names
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState

# Looked up once, as in `ledger.py`.
_PREFILL, _DECODE = Leg.PREFILL, Leg.DECODE


class _Policies(msgspec.Struct, frozen=True):
    """What a request is decided by.

    Attributes:
        prefill: scores prefill pods.
        decode: scores decode pods.
        algorithms: the names of both, and of what they are put together of.
        complaints: what is wrong with what the model asks for, for people.
    """

    prefill: PrefillPolicy
    decode: DecodePolicy
    algorithms: frozenset[str]
    complaints: tuple[str, ...]


class PrefillDecode:
    """Disaggregates what can be split; a decode pod serves the rest whole.

    A policy scores each leg's candidates. Within a roleset the best of both are a pair; among
    rolesets, the pair with the lowest sum of scores wins, each as a share of the highest. A model's
    profile may ask for other policies than the operator's.
    """

    name = "pd"

    def __init__(
        self,
        prefill: PolicyBook[PrefillPolicy],
        decode: PolicyBook[DecodePolicy],
        *,
        bucketing: bool = False,
        locality: float = 0.0,
    ) -> None:
        """Set up the strategy.

        Args:
            prefill: policies for prefill pods.
            decode: policies for decode pods.
            bucketing: whether pods say in their configuration which prompt lengths they are for.
            locality: what the longest distance between the pods of a pair counts, where the highest
                score counts 1.
        """
        self._prefill = prefill
        self._decode = decode
        self._bucketing = bucketing
        self._locality = locality
        self._usual = self._choose_policies("", "")

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose a pair, or one pod for a request that is served whole."""
        policies = self._usual
        if facts.prefill_policy or facts.decode_policy:  # Few models ask for their own.
            policies = self._choose_policies(facts.prefill_policy, facts.decode_policy)
        request = RankingRequest(facts, state, pods.prefill_uids)
        if facts.selector is not None:
            pods = keep_selected(pods, facts.selector)
        whole = facts.whole or (None if pods.disaggregated else "not-disaggregated")
        if whole is not None:
            if self._bucketing:
                pods = apply_buckets_whole(pods, facts)
            return _decide_whole(policies, whole, pods, request)
        if self._bucketing:
            bucketed = apply_buckets(pods, facts, state)
            if isinstance(bucketed, Decision):
                notes = (*policies.complaints, *bucketed.notes)
                return structs.replace(bucketed, notes=notes)
            pods = bucketed
        if not pods.prefill:
            raise NoReadyPod(pods.model, Role.PREFILL if pods.decode else Role.DECODE)
        if facts.items:
            pods = keep_encoded(pods)
        pods, left_out = keep_sound(pods, state.failures)
        told = [*policies.complaints, *left_out]
        prefills, decodes = _rank(policies, pods, request, told)
        pair = pick_pair(prefills, decodes, pods, state.random, self._locality)
        if pair.note:
            told.append(pair.note)
        prefill = _choose_prefill(policies.prefill, prefills, pair.prefill, request)
        decode = _choose_decode(policies.decode, decodes, pair.decode, request)
        return Decision((prefill,), decode, notes=tuple(told))

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        """Return the names of the policies that rank the pods of its legs."""
        if not (prefill_policy or decode_policy):
            return self._usual.algorithms
        return self._choose_policies(prefill_policy, decode_policy).algorithms

    def _choose_policies(self, prefill_policy: str, decode_policy: str) -> _Policies:
        prefill, no_prefill = self._prefill.find(prefill_policy)
        decode, no_decode = self._decode.find(decode_policy)
        algorithms = list_names(prefill.name) | list_names(decode.name)
        return _Policies(prefill, decode, algorithms, tuple(filter(None, (no_prefill, no_decode))))


def _decide_whole(
    policies: _Policies, reason: str, pods: ModelPods, request: RankingRequest
) -> Decision:
    if not pods.whole:
        raise NoReadyPod(pods.model, Role.DECODE)
    pods, notes = keep_sound(pods, request.state.failures)
    ranking = policies.decode.rank(pods.whole, request)
    index = pick_lowest(ranking.scores, request.state.random)
    choice = _choose_decode(policies.decode, ranking, index, request)
    told = (*policies.complaints, *notes)
    return Decision((), choice, reason, (*told, ranking.note) if ranking.note else told)


def _rank(
    policies: _Policies, pods: ModelPods, request: RankingRequest, notes: list[str]
) -> tuple[Ranking, Ranking]:
    """Let the policies drop pods, and those without partners with them; score the rest."""
    prefills, note = policies.prefill.narrow(pods.prefill, request)
    if note:
        notes.append(note)
    if len(prefills) < len(pods.prefill):
        pods = pods.keep_pairs(prefills, pods.decode)
    decodes = policies.decode.rank(pods.partners, request)
    if decodes.note:
        notes.append(decodes.note)
    if len(decodes.pods) < len(pods.partners):
        partners = {pod.pairing for pod in decodes.pods}
        prefills = [pod for pod in prefills if pod.pairing in partners]
    scores = policies.prefill.score(prefills, request)
    if math.inf in scores:
        left = [index for index, score in enumerate(scores) if score < math.inf]
        dropped = len(prefills) - len(left)
        notes.append(f"{policies.prefill.name}: {dropped} prefill pods are left out")
        prefills, scores = [prefills[i] for i in left], [scores[i] for i in left]
    return Ranking(prefills, scores), decodes


def _choose_prefill(
    policy: PrefillPolicy, ranking: Ranking, index: int, request: RankingRequest
) -> Choice:
    pods, scores = ranking.pods, ranking.scores
    pod, ledger = pods[index], request.state.ledger
    tokens = policy.count_tokens(pod.uid, request)
    cached = max(0, request.facts.prompt_tokens - tokens)
    rates = ledger.rates
    work = rates.measure(tokens, rates.shapes.get(pod.uid, rates.default), cached)
    seconds = ledger.predict_prefill(pod.uid, work)
    parts = policy.explain(pods, request)
    return Choice(_PREFILL, pod, policy.name, scores[index], pods, scores, tokens, seconds, parts)


def _choose_decode(
    policy: DecodePolicy, ranking: Ranking, index: int, request: RankingRequest
) -> Choice:
    pods, scores = ranking.pods, ranking.scores
    tokens = request.facts.prompt_tokens + request.facts.output_tokens
    return Choice(
        _DECODE,
        pods[index],
        policy.name,
        scores[index],
        pods,
        scores,
        tokens,
        parts=ranking.parts,
    )
