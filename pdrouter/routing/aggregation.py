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

# Looked up once, as in `ledger.py`.
_DECODE = Leg.DECODE

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
    return pod.serves_whole and _is_able(pod, sample)


def _is_able(pod: Pod, sample: EngineSample | None) -> bool:
    """Return what `computes_prompts` does of a pod that may serve requests whole."""
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

    __slots__ = ("_blocks", "_facts", "_rules", "_state")

    def __init__(self, facts: RoutingFacts, state: RoutingState, rules: WholeRules) -> None:
        self._facts = facts
        self._state = state
        self._rules = rules
        self._blocks: Mapping[str, int] | None = None

    def choose(self, able: Sequence[Pod]) -> tuple[Choice | None, str]:
        """Return the pod that would have the first token soonest; without one, why."""
        pods = self._draw(able)
        samples = [self._state.samples.get(pod.uid) for pod in pods]
        obstacles = [*map(self._find_obstacle, pods, samples)]
        if all(obstacles):
            return None, _describe_obstacles(obstacles)
        crowd, gaps = _measure_crowd(samples), [*map(_find_gap, samples)]
        usual_gap = _find_usual(gaps)
        candidates: list[Pod] = []
        scores: list[float] = []
        computed: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for index, (pod, sample) in enumerate(zip(pods, samples, strict=True)):
            if obstacles[index]:
                continue
            uid = pod.uid
            tokens = self._count_computed(uid, sample)
            compute_s = self._predict(uid, tokens)
            first_s = self._state.whole.predict_wait(uid) + compute_s
            gap = gaps[index] or usual_gap
            if self._is_busy(uid, sample) if gap is None else self._slows(uid, first_s, gap, crowd):
                obstacles[index] = "time between tokens"
                continue
            computed[uid], seconds[uid] = tokens, compute_s
            candidates.append(pod)
            scores.append(first_s + (usual_gap or 0.0))
        if not candidates:
            return None, _describe_obstacles(obstacles)
        parts = WholeParts(self._facts.prompt_tokens, computed, seconds)
        return self._make_choice(candidates, scores, parts), ""

    def _draw(self, able: Sequence[Pod]) -> Sequence[Pod]:
        """Return the pods that are looked at: all of a few; of many, the best for the cache.

        Those that have most cached may have no room for it now: then the next ones are looked at.
        """
        if len(able) <= _MOST_CACHING + _MOST_OTHERS:
            return able
        blocks, samples = self._match(), self._state.samples
        known = [pod for pod in able if pod.uid in blocks] if blocks else []
        known.sort(key=lambda pod: blocks[pod.uid], reverse=True)
        free = (pod for pod in known if not self._find_obstacle(pod, samples.get(pod.uid)))
        caching = list(islice(free, _MOST_CACHING))
        drawn = {pod.uid for pod in caching}
        others = self._state.random.sample(able, _MOST_OTHERS)
        return [*caching, *(pod for pod in others if pod.uid not in drawn)]

    def _match(self) -> Mapping[str, int]:
        """Return how many blocks of the prompt each pod has had, by UID; 0 where absent."""
        if self._blocks is None:
            self._blocks = self._state.decoded.match(self._facts.prefix.hashes)
        return self._blocks

    def _find_obstacle(self, pod: Pod, sample: EngineSample | None) -> str:
        """Return why a pod must not get the request whole, in a few words; nothing if it may."""
        if not _is_able(pod, sample):
            return "not known to compute prompts"
        state, uid = self._state, pod.uid
        if not state.whole.may_serve(uid):
            return "has refused" if state.whole.is_refused(uid) else "speed not known"
        if sample is None:
            return ""
        if sample.waiting:
            return "no free slot"
        need = self._facts.prompt_tokens + self._facts.output_tokens
        if find_usage(sample, state.ledger.load(_DECODE, uid), need) > FULL:
            return "no room"
        return ""

    def _count_computed(self, uid: str, sample: EngineSample | None) -> int:
        """Return how many tokens of the prompt a pod would compute, as far as that is known."""
        facts, blocks = self._facts, self._match().get(uid, 0)
        if not blocks:
            return max(1, facts.prompt_tokens)
        prefix, last = facts.prefix, blocks - 1
        known = facts.prompt_tokens * prefix.ends[last] // prefix.size
        left, free = facts.prompt_tokens - known, find_free_tokens(sample)
        cached = self._state.decoded.count_cached(uid, prefix.hashes[last], known, left, free)
        return max(1, facts.prompt_tokens - cached)

    def _predict(self, uid: str, tokens: int) -> float:
        state, cached = self._state, max(0, self._facts.prompt_tokens - tokens)
        seconds = state.ledger.rates.predict(uid, tokens, cached)
        return seconds * state.whole.find_factor(uid)

    def _slows(self, uid: str, first_s: float, gap: float, crowd: float) -> bool:
        """Return whether to compute the prompt would slow down what a pod decodes too much.

        A request that decodes meanwhile has so many seconds more for all of its tokens.

        Args:
            uid: the pod.
            first_s: seconds until it has computed this prompt, and those before it.
            gap: mean time between two tokens there.
            crowd: how many times as many requests as this router's the pods have.
        """
        rules = self._rules
        tokens = self._facts.usual_output_tokens or self._facts.output_tokens or 1
        slowed = gap + first_s / tokens
        if rules.gap_s is not None:
            return slowed > rules.gap_s
        undisturbed = gap / (1.0 + crowd * self._state.whole.measure_share(uid))
        return slowed > rules.slowdown * undisturbed

    def _is_busy(self, uid: str, sample: EngineSample | None) -> bool:
        """Return whether a pod decodes anything, as far as that is known."""
        ours = self._state.ledger.load(_DECODE, uid).requests
        return ours > 0 or (sample is not None and sample.others > 0)

    def _make_choice(
        self, candidates: Sequence[Pod], scores: Sequence[float], parts: WholeParts
    ) -> Choice:
        state = self._state
        ranks = [
            (score, state.ledger.load(_DECODE, pod.uid).requests, state.random.random())
            for pod, score in zip(candidates, scores, strict=True)
        ]
        best = ranks.index(min(ranks))
        pod, facts = candidates[best], self._facts
        return Choice(
            _DECODE,
            pod,
            POLICY,
            scores[best],
            candidates,
            scores,
            facts.prompt_tokens + facts.output_tokens,
            parts.seconds[pod.uid],
            parts,
        )


def _measure_crowd(samples: Sequence[EngineSample | None]) -> float:
    """Return how many times as many requests as this router's some pods have.

    Other routers do as this one does, each with its own.
    """
    own, others = 0, 0.0
    for sample in samples:
        if sample is not None:
            own += sample.own_requests
            others += sample.others
    return 1.0 + others / max(1, own)


def _find_gap(sample: EngineSample | None) -> float | None:
    """Return the mean time between two tokens on a pod; None if nothing tells it."""
    if sample is None:
        return None
    if sample.gap_s is not None:
        return sample.gap_s
    rate = sample.generated_tokens_per_s
    return sample.running / rate if sample.running and rate else None


def _find_usual(gaps: Sequence[float | None]) -> float | None:
    """Return the median of what is known; None where nothing is."""
    known = sorted(gap for gap in gaps if gap is not None)
    return known[len(known) // 2] if known else None


def _describe_obstacles(obstacles: Sequence[str]) -> str:
    told = [f"{each} ({obstacles.count(each)})" for each in dict.fromkeys(obstacles)]
    return "; ".join(told) or "there is no pod for whole requests"
