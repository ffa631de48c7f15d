"""Whether a decode pod serves a request whole that could be split, and which one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.samples import EngineSample, find_free_tokens
from pdrouter.routing.aibrix.bucketing import apply_buckets_whole
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts, Ways
from pdrouter.routing.filters import keep_selected
from pdrouter.routing.kv_capacity import FULL, find_usage
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState

REASON = "faster"
"""Reason of a decision: a decode pod alone was predicted to have the first token sooner."""
POLICY = "when-faster"

_GAIN = 0.9
"""What serving a request whole must take of the time over two pods, at most."""
_MOST_CACHING, _MOST_OTHERS = 4, 8
"""Pods that are looked at: of those that have a part of the prompt cached, and of the others."""
_NEURON_WIRES = frozenset({"neuron-write", "neuron-legacy"})
_OTHER_ENGINES = frozenset({"trtllm"})
"""Engines beside vLLM whose decode pods are known to compute prompts."""


@dataclass(frozen=True, slots=True)
class WholeRules:
    """When a request is served whole that could be split.

    Attributes:
        gap_s: mean seconds between two tokens beyond which decoding must not be slowed down; None
            for `slowdown` times what it takes without such requests.
        slowdown: see there.
        bucketing: whether pods say which prompt lengths they are for.
    """

    gap_s: float | None = None
    slowdown: float = 1.07
    bucketing: bool = False


DEFAULT_WHOLE_RULES = WholeRules()


class WholeParts(msgspec.Struct, frozen=True):
    """What the decode pods would have had to do for a whole request.

    Attributes:
        prompt_tokens: length of the prompt.
        computed: tokens of it that each would compute, by UID.
        seconds: how long that takes there.
    """

    prompt_tokens: int
    computed: Mapping[str, int]
    seconds: Mapping[str, float]

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return the parts of a pod's score, their units in their names."""
        del index
        computed, seconds = self.computed[uid], self.seconds[uid]
        return {
            "cached_tokens": self.prompt_tokens - computed,
            "computed_tokens": computed,
            "compute_s": round(seconds, 6),
            "wait_s": round(max(0.0, score - seconds), 6),
        }


def computes_prompts(pod: Pod, sample: EngineSample | None) -> bool:
    """Return whether it is known that an engine that decodes can compute prompts, too.

    vLLM's and TensorRT-LLM's can. Those of SGLang cannot. A Neuron engine can if it has been
    compiled for it, which it tells once it has run; before, it looks like any other vLLM but for
    the devices of its container.
    """
    if not pod.serves_whole:
        return False
    if pod.computes_prompts is not None:
        return pod.computes_prompts
    if sample is None:
        return False
    if sample.computes_prompts is not None:
        return sample.computes_prompts
    if pod.neuron or pod.kv_connector in _NEURON_WIRES:
        return False
    return pod.engine == "vllm" or pod.engine in _OTHER_ENGINES


def choose_way(
    decision: Decision, facts: RoutingFacts, pods: ModelPods, state: RoutingState, rules: WholeRules
) -> Decision:
    """Return the decision, or one for the decode pod that is predicted to be faster alone.

    Until it has been measured what the way over two pods takes, there is nothing to compare.

    Args:
        decision: the pair that was chosen.
        facts: the request.
        pods: the pods of its model.
        state: their condition.
        rules: what the operator decided.
    """
    prefill = decision.prefill
    if prefill is None or prefill.seconds is None or facts.items:
        return decision
    handover_s = state.whole.find_handover(pods.model)
    if handover_s is None:
        answers = state.whole.count_answers(pods.model)
        return structs.replace(decision, ways=Ways(prefill.seconds, None, None, answers=answers))
    look = _Look(facts, state, rules)
    choice, obstacle = look.choose(_list_able(pods, facts, state, rules))
    if choice is None or choice.seconds is None:
        ways = Ways(prefill.seconds, handover_s, None, obstacle)
        return structs.replace(decision, ways=ways)
    ways = Ways(prefill.seconds, handover_s, choice.score, "", choice.pod.name, choice.seconds)
    if choice.score >= _GAIN * ways.two_legs_s:
        return structs.replace(decision, ways=ways)
    return structs.replace(decision, side=(), last=choice, reason=REASON, ways=ways)


def _list_able(
    pods: ModelPods, facts: RoutingFacts, state: RoutingState, rules: WholeRules
) -> Sequence[Pod]:
    """Return the pods that may serve the request whole, whatever they have to do."""
    pods = keep_selected(pods, facts.selector)
    if rules.bucketing:
        try:
            pods = apply_buckets_whole(pods, facts)
        except NoReadyPod:
            return ()
    sound, _ = keep_sound(pods, state.failures)
    return sound.whole


class _Look:
    """One look at the decode pods, for one request."""

    __slots__ = ("_blocks", "_facts", "_left_out", "_rules", "_state")

    def __init__(self, facts: RoutingFacts, state: RoutingState, rules: WholeRules) -> None:
        self._facts = facts
        self._state = state
        self._rules = rules
        self._blocks = state.decoded.match(facts.prefix.hashes)
        self._left_out: dict[str, int] = {}

    def choose(self, able: Sequence[Pod]) -> tuple[Choice | None, str]:
        """Return the pod that would have the first token soonest; without one, why."""
        pods = self._draw(able)
        crowd = self._measure_crowd(pods)
        usual_gap = self._find_usual_gap(pods)
        candidates: list[Pod] = []
        scores: list[float] = []
        computed: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for pod in pods:
            uid = pod.uid
            obstacle = self._find_obstacle(pod)
            if not obstacle:
                tokens = self._count_computed(uid)
                compute_s = self._predict(uid, tokens)
                if self._delays_others(uid, compute_s, crowd, usual_gap):
                    obstacle = "time between tokens"
            if obstacle:
                self._left_out[obstacle] = self._left_out.get(obstacle, 0) + 1
                continue
            computed[uid], seconds[uid] = tokens, compute_s
            candidates.append(pod)
            scores.append(self._state.whole.predict_wait(uid) + compute_s + (usual_gap or 0.0))
        if not candidates:
            return None, self._describe_left_out()
        parts = WholeParts(self._facts.prompt_tokens, computed, seconds)
        return self._make_choice(candidates, scores, parts), ""

    def _draw(self, able: Sequence[Pod]) -> Sequence[Pod]:
        """Return the pods that are looked at: all of a few; of many, the best for the cache.

        Those that have most cached may have no room for it now: then the next ones are looked at.
        """
        if len(able) <= _MOST_CACHING + _MOST_OTHERS:
            return able
        blocks = self._blocks
        known = [pod for pod in able if pod.uid in blocks] if blocks else []
        known.sort(key=lambda pod: blocks[pod.uid], reverse=True)
        free = (pod for pod in known if not self._find_obstacle(pod))
        caching = list(islice(free, _MOST_CACHING))
        drawn = {pod.uid for pod in caching}
        others = self._state.random.sample(able, _MOST_OTHERS)
        return [*caching, *(pod for pod in others if pod.uid not in drawn)]

    def _find_obstacle(self, pod: Pod) -> str:
        """Return why a pod must not get the request whole, in a few words; nothing if it may."""
        state, uid = self._state, pod.uid
        sample = state.samples.get(uid)
        if not computes_prompts(pod, sample):
            return "not known to compute prompts"
        if not state.whole.may_serve(uid):
            return "has refused" if state.whole.is_refused(uid) else "speed not known"
        if sample is None:
            return ""
        if sample.waiting:
            return "no free slot"
        need = self._facts.prompt_tokens + self._facts.output_tokens
        if find_usage(sample, state.ledger.load(Leg.DECODE, uid), need) > FULL:
            return "no room"
        return ""

    def _count_computed(self, uid: str) -> int:
        """Return how many tokens of the prompt a pod would compute, as far as that is known."""
        facts, blocks = self._facts, self._blocks.get(uid, 0)
        if not blocks:
            return max(1, facts.prompt_tokens)
        prefix, last = facts.prefix, blocks - 1
        known = facts.prompt_tokens * prefix.ends[last] // prefix.size
        left = facts.prompt_tokens - known
        free = find_free_tokens(self._state.samples.get(uid))
        cached = self._state.decoded.count_cached(uid, prefix.hashes[last], known, left, free)
        return max(1, facts.prompt_tokens - cached)

    def _predict(self, uid: str, tokens: int) -> float:
        state, cached = self._state, max(0, self._facts.prompt_tokens - tokens)
        seconds = state.ledger.rates.predict(uid, tokens, cached)
        return seconds * state.whole.find_factor(uid)

    def _measure_crowd(self, pods: Sequence[Pod]) -> float:
        """Return how many times as many requests as this router's the pods have.

        Other routers do as this one does, each with its own.
        """
        samples = [sample for pod in pods if (sample := self._state.samples.get(pod.uid))]
        own = sum(sample.own_requests for sample in samples)
        return 1.0 + sum(sample.others for sample in samples) / max(1, own)

    def _find_usual_gap(self, pods: Sequence[Pod]) -> float | None:
        gaps = sorted(gap for pod in pods if (gap := self._find_gap(pod.uid)) is not None)
        return gaps[len(gaps) // 2] if gaps else None

    def _find_gap(self, uid: str) -> float | None:
        """Return the mean time between two tokens on a pod; None if nothing tells it."""
        sample = self._state.samples.get(uid)
        if sample is None:
            return None
        if sample.gap_s is not None:
            return sample.gap_s
        rate = sample.generated_tokens_per_s
        return sample.running / rate if sample.running and rate else None

    def _delays_others(
        self, uid: str, compute_s: float, crowd: float, usual_gap: float | None
    ) -> bool:
        """Return whether to compute the prompt would slow down what a pod decodes too much.

        A request that decodes meanwhile has so many seconds more for all of its tokens.
        """
        gap = self._find_gap(uid) or usual_gap
        if gap is None:
            return not self._is_idle(uid)
        whole, rules = self._state.whole, self._rules
        tokens = self._facts.usual_output_tokens or self._facts.output_tokens or 1
        slowed = gap + (whole.predict_wait(uid) + compute_s) / tokens
        if rules.gap_s is not None:
            return slowed > rules.gap_s
        undisturbed = gap / (1.0 + crowd * whole.measure_share(uid))
        return slowed > rules.slowdown * undisturbed

    def _is_idle(self, uid: str) -> bool:
        sample = self._state.samples.get(uid)
        ours = self._state.ledger.load(Leg.DECODE, uid).requests
        return not ours and (sample is None or not sample.others)

    def _make_choice(
        self, candidates: Sequence[Pod], scores: Sequence[float], parts: WholeParts
    ) -> Choice:
        state = self._state
        ranks = [
            (score, state.ledger.load(Leg.DECODE, pod.uid).requests, state.random.random())
            for pod, score in zip(candidates, scores, strict=True)
        ]
        best = ranks.index(min(ranks))
        pod, facts = candidates[best], self._facts
        return Choice(
            Leg.DECODE,
            pod,
            POLICY,
            scores[best],
            candidates,
            scores,
            facts.prompt_tokens + facts.output_tokens,
            parts.seconds[pod.uid],
            parts,
        )

    def _describe_left_out(self) -> str:
        told = (f"{reason} ({count})" for reason, count in self._left_out.items())
        return "; ".join(told) or "there is no pod for whole requests"
