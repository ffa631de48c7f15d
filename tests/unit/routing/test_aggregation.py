"""Which requests decode pods serve whole to be faster, and which pods may."""

import json
from dataclasses import replace
from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.cluster.pod_config import parse_config
from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.samples import EngineSample
from pdrouter.load.whole_serving import ENOUGH_ANSWERS, WholeServing
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.aggregation import WholeRules, computes_prompts
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.strategies import create_strategies
from pdrouter.routing.whole_lessons import (
    learn_first_token,
    learn_prompt,
    learn_status,
    note_sent,
    wants_first_token,
)
from pdrouter.settings.choices import Aggregation

STRATEGIES = create_strategies()
PD = STRATEGIES["pd"]
PREFILL = make_pod("prefill")
FIRST, SECOND = (make_pod(name, Role.DECODE) for name in ("first", "second"))
TOKENS_PER_S = 1000.0
FACTS = RoutingFacts(100, None, output_tokens=100, usual_output_tokens=1000)
QUIET = EngineSample(at=0.0, running=4, own_requests=4, waiting=0, gap_s=0.02)


class Cluster:
    """A router in front of a prefill pod and some decode pods, at a time that is set."""

    def __init__(
        self,
        *decode: Pod,
        queued: int = 10_000,
        handover_s: float | None = 0.2,
        samples: dict[str, EngineSample] | None = None,
        **rules: Any,
    ) -> None:
        self.now = 0.0
        self.pods = make_model_pods(PREFILL, *(decode or (FIRST,)))
        self.ledger = Ledger(PrefillRates(TOKENS_PER_S), self.clock)
        self.whole = WholeServing(handover_s, self.clock)
        self.samples = samples or dict.fromkeys((pod.uid for pod in self.pods.whole), QUIET)
        self.state = make_state(
            self.ledger, samples=self.samples, whole=self.whole, clock=self.clock
        )
        self.router = Router(
            STRATEGIES,
            self.state,
            RoutingRules(Aggregation.WHEN_FASTER, WholeRules(**rules)),
        )
        if queued:
            self.ledger.start(Leg.PREFILL, PREFILL.uid, queued)
        for pod in self.pods.whole:
            self.know(pod)

    def clock(self) -> float:
        return self.now

    def know(self, pod: Pod, factor: float = 1.0) -> None:
        """Let it be known that a pod takes so many times as long as a prefill pod."""
        self.whole.begin(pod.uid, 0.0)
        for _ in range(50):
            self.whole.observe(pod.uid, 1.0, factor)

    def decide(self, **facts: Any) -> Decision:
        return self.router.decide(PD, structs.replace(FACTS, **facts), self.pods)

    def explain(self, **facts: Any) -> str:
        """Return why a request is not served whole."""
        decision = self.decide(**facts)
        assert not decision.whole
        assert decision.ways is not None
        return str(decision.ways.describe()["obstacle"])


def test_behind_a_queue_a_decode_pod_is_faster_and_both_predictions_are_told() -> None:
    decision = Cluster().decide()
    assert (decision.reason, decision.last.pod) == ("faster", FIRST)
    assert decision.ways is not None
    assert decision.ways.two_legs_s == pytest.approx(10.1 + 0.2)
    assert decision.ways.whole_s == pytest.approx(0.1 + 0.02)
    assert decision.ways.describe().keys() == {"two_legs_s", "whole_s", "pod"}
    (score,) = decision.last.scores
    assert decision.last.parts is not None
    assert decision.last.parts.describe(0, FIRST.uid, score) == {
        "cached_tokens": 0,
        "computed_tokens": 100,
        "compute_s": pytest.approx(0.1),
        "wait_s": pytest.approx(0.02),
    }


@pytest.mark.parametrize("aggregation", [Aggregation.NEVER, Aggregation.FALLBACK])
def test_where_it_is_not_wanted_nothing_is_compared(aggregation: Aggregation) -> None:
    cluster = Cluster()
    rules = RoutingRules(aggregation)
    decision = Router(STRATEGIES, cluster.state, rules).decide(PD, FACTS, cluster.pods)
    assert (decision.whole, decision.ways) == (False, None)


@pytest.mark.parametrize(
    ("handover_s", "whole"),
    # Alone it takes 0.12 s, of which a tenth must be gained.
    [(0.0, False), (0.02, False), (0.03, False), (0.04, True)],
)
def test_what_takes_about_as_long_goes_two_legs(handover_s: float, whole: bool) -> None:
    assert Cluster(queued=0, handover_s=handover_s).decide().whole is whole


def test_nothing_is_compared_before_the_hand_over_has_been_measured() -> None:
    cluster = Cluster(handover_s=None)
    split = cluster.decide()
    for number in range(ENOUGH_ANSWERS):
        assert cluster.explain() == (
            f"the hand-over is not known: {number} of {ENOUGH_ANSWERS} answers are measured"
        )
        assert wants_first_token(split, "", cluster.pods.model, cluster.state)
        learn_first_token(split, "", cluster.pods.model, cluster.state, 0.2)
    assert cluster.decide().whole
    assert cluster.whole.find_handover(cluster.pods.model) == pytest.approx(0.2)


# --- Which pods may --------------------------------------------------------------------------

NEURON_STEPS = replace(QUIET, computes_prompts=False)
NEURON_PROMPTS = replace(QUIET, computes_prompts=True)


@pytest.mark.parametrize(
    ("pod", "sample", "able"),
    [
        ({}, QUIET, True),
        ({}, None, False),
        ({"kv_connector": "nixl"}, QUIET, True),
        ({"kv_connector": "mooncake"}, QUIET, True),
        ({"engine": "trtllm"}, QUIET, True),
        ({"engine": "sglang"}, QUIET, False),
        ({"engine": "sglang", "computes_prompts": True}, QUIET, False),
        ({"engine": "sglang"}, NEURON_PROMPTS, False),
        ({}, NEURON_STEPS, False),
        ({}, NEURON_PROMPTS, True),
        ({"neuron": True}, QUIET, False),
        ({"neuron": True}, None, False),
        ({"neuron": True}, NEURON_PROMPTS, True),
        ({"neuron": True}, NEURON_STEPS, False),
        ({"neuron": True, "computes_prompts": True}, QUIET, True),
        ({"neuron": True, "computes_prompts": True}, NEURON_STEPS, True),
        ({"computes_prompts": False}, NEURON_PROMPTS, False),
        ({"computes_prompts": True}, None, True),
        ({"kv_connector": "neuron-write"}, QUIET, False),
        ({"kv_connector": "neuron-legacy"}, QUIET, False),
        ({"kv_connector": "neuron-write"}, NEURON_PROMPTS, True),
    ],
)
def test_who_is_known_to_compute_prompts(
    pod: dict[str, Any], sample: EngineSample | None, able: bool
) -> None:
    made = {name: pod.pop(name) for name in ("engine", "kv_connector") if name in pod}
    known = replace(make_pod("d", Role.DECODE, **made), **pod)
    assert computes_prompts(known, sample) is able


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"waiting": 1}, "no free slot (1)"),
        ({"kv_usage": 0.99, "kv_capacity_tokens": 10_000}, "no room (1)"),
        ({"kv_usage": 0.9, "kv_capacity_tokens": 1_000}, "no room (1)"),
        ({"kv_usage": 0.9, "kv_capacity_tokens": 100_000}, ""),
        ({"computes_prompts": False}, "not known to compute prompts (1)"),
        ({"gap_s": 0.0005}, "time between tokens (1)"),
        # Without a histogram, the time between tokens follows from what is generated.
        ({"gap_s": None, "generated_tokens_per_s": 200.0}, ""),
        ({"gap_s": None, "generated_tokens_per_s": 20_000.0}, "time between tokens (1)"),
        ({"gap_s": None}, "time between tokens (1)"),
        ({"gap_s": None, "own_requests": 0, "running": 0}, ""),
    ],
    ids=str,
)
def test_what_keeps_a_pod_from_it(changes: dict[str, Any], obstacle: str) -> None:
    cluster = Cluster(samples={FIRST.uid: replace(QUIET, **changes)})
    if "own_requests" not in changes:
        cluster.ledger.start(Leg.DECODE, FIRST.uid, 0)
    decision = cluster.decide()
    assert decision.ways is not None
    assert (decision.ways.obstacle, decision.whole) == (obstacle, not obstacle)


def test_a_pod_that_the_client_does_not_select_is_none() -> None:
    cluster = Cluster(*(replace(pod, labels={"name": pod.name}) for pod in (FIRST, SECOND)))
    cluster.know(SECOND, 5.0)
    assert cluster.decide().last.pod.name == "first"
    decision = cluster.decide(selector=parse_selector("name!=first"))
    assert (decision.reason, decision.last.pod.name) == ("faster", "second")


def test_a_pod_that_has_failed_is_none() -> None:
    cluster = Cluster(FIRST, SECOND)
    cluster.know(SECOND, 5.0)
    assert cluster.decide().last.pod is FIRST
    for _ in range(3):
        cluster.state.failures.note_failure(FIRST.uid, Leg.DECODE, "connect", 1.0)
    decision = cluster.decide()
    assert (decision.reason, decision.last.pod) == ("faster", SECOND)


def test_what_others_encode_goes_to_two_pods() -> None:
    decision = Cluster().decide(items=("digest",))
    assert (decision.whole, decision.ways) == (False, None)


@pytest.mark.parametrize("bucketing", [False, True])
def test_where_pods_are_for_lengths_they_are_for_no_others(bucketing: bool) -> None:
    lengths = {"promptLenBucketMinLength": 5000, "promptLenBucketMaxLength": 9000}
    routing = {"profiles": {"default": {"routingConfig": {**lengths, "combined": True}}}}
    long = make_pod("long", Role.BOTH, config=parse_config(json.dumps(routing)))
    cluster = Cluster(FIRST, long, bucketing=bucketing)
    cluster.know(FIRST, 5.0)
    decision = cluster.decide()
    assert decision.reason == "faster"
    assert decision.last.pod is (FIRST if bucketing else long)


def test_of_two_pods_the_one_that_computes_no_prompt_now_is_sooner() -> None:
    cluster = Cluster(FIRST, SECOND, gap_s=10.0)
    decision = cluster.decide(prompt_tokens=300)
    note_sent(decision, cluster.state)
    other = ({FIRST, SECOND} - {decision.last.pod}).pop()
    for _ in range(10):
        assert cluster.decide(prompt_tokens=300).last.pod is other


def test_the_best_decode_pod_is_looked_for_not_the_one_of_the_pair() -> None:
    cluster = Cluster(FIRST, SECOND)
    cluster.know(FIRST, 5.0)
    # The pair's is the one with less to do.
    cluster.ledger.start(Leg.DECODE, SECOND.uid, 100)
    decision = cluster.decide()
    assert (decision.whole, decision.last.pod) == (True, SECOND)
    assert decision.last.candidates == [FIRST, SECOND]


# --- Time between tokens ---------------------------------------------------------------------


def test_what_is_decoded_is_not_slowed_down_beyond_the_target() -> None:
    # A second of computing costs a thousand tokens a millisecond each.
    assert Cluster(gap_s=0.0205).explain(prompt_tokens=600) == "time between tokens (1)"
    assert Cluster(gap_s=0.0205).decide(prompt_tokens=400).whole


def test_prompts_that_are_still_computed_count_against_it() -> None:
    cluster = Cluster(gap_s=0.0205)
    for whole in (True, False):
        decision = cluster.decide(prompt_tokens=300)
        assert decision.whole is whole
        note_sent(decision, cluster.state)
    cluster.now += 0.3
    assert cluster.decide(prompt_tokens=300).whole


def test_without_a_target_it_is_a_share_of_what_it_takes_undisturbed() -> None:
    assert Cluster(slowdown=1.1).decide(prompt_tokens=1900).whole
    assert Cluster(slowdown=1.1).explain(prompt_tokens=2100) == "time between tokens (1)"
    # What the pod has computed of late has slowed it down already.
    cluster = Cluster(slowdown=1.1)
    note_sent(cluster.decide(prompt_tokens=900), cluster.state)
    cluster.now += 1.0
    assert cluster.explain(prompt_tokens=900) == "time between tokens (1)"
    cluster.now += 60.0
    assert cluster.decide(prompt_tokens=900).whole


def test_other_routers_are_taken_to_do_as_this_one_does() -> None:
    crowded = replace(QUIET, own_requests=4, running=16)
    for sample, whole in ((QUIET, True), (crowded, False)):
        cluster = Cluster(slowdown=1.1, samples={FIRST.uid: sample})
        note_sent(cluster.decide(prompt_tokens=300), cluster.state)
        cluster.now += 0.5
        assert cluster.decide(prompt_tokens=300).whole is whole


# --- What decode pods have cached ------------------------------------------------------------


def make_prefix(blocks: int, size: int) -> PromptPrefix:
    """A prompt of a conversation: all of them begin with the same blocks, of ten tokens each."""
    return PromptPrefix(tuple(range(blocks)), tuple(range(10, 10 * blocks + 1, 10)), size)


def test_the_next_turn_of_a_conversation_is_cached_where_the_last_was_decoded() -> None:
    cluster = Cluster(FIRST, SECOND, queued=0)
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    first = cluster.router.decide(PD, turn, cluster.pods)
    learn_prompt(first, turn, cluster.state, 50, "m")
    # 2,000 tokens of the prompt are known, 5 behind them, 50 of the answer, and 65 are new.
    longer = {"prompt_tokens": 2120, "prefix": make_prefix(212, 2120)}
    decision = cluster.decide(**longer)
    assert (decision.reason, decision.last.pod) == ("faster", first.last.pod)
    assert decision.last.parts is not None
    parts = decision.last.parts.describe(0, decision.last.pod.uid, 0.0)
    assert parts["computed_tokens"] == 120 - 55


def test_prompts_are_not_learnt_while_there_is_nothing_to_compare() -> None:
    cluster = Cluster(handover_s=None)
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    decision = cluster.router.decide(PD, turn, cluster.pods)
    learn_prompt(decision, turn, cluster.state, 50, "m")
    assert not cluster.state.decoded.match(turn.prefix.hashes)
    for _ in range(ENOUGH_ANSWERS):
        cluster.whole.observe_handover("m", 0.2)
    learn_prompt(decision, turn, cluster.state, 50, "m")
    assert cluster.state.decoded.match(turn.prefix.hashes) == {FIRST.uid: 200}


def test_what_others_have_written_over_is_not_cached_any_more() -> None:
    sample = replace(QUIET, kv_usage=0.5, kv_capacity_tokens=40_000)
    cluster = Cluster(samples={FIRST.uid: sample})
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    learn_prompt(cluster.router.decide(PD, turn, cluster.pods), turn, cluster.state, 50, "m")
    longer = {"prompt_tokens": 2120, "prefix": make_prefix(212, 2120), "usual_output_tokens": 10**6}
    assert cluster.decide(**longer).last.seconds == pytest.approx(0.065)
    other = structs.replace(FACTS, prompt_tokens=9000)
    learn_prompt(cluster.decide(), other, cluster.state, 0, "m")
    assert cluster.decide(**longer).last.seconds == pytest.approx(2.12)


def test_no_answer_is_taken_for_more_than_half_of_what_follows() -> None:
    """A question comes behind it, however long it may have been."""
    cluster = Cluster()
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    learn_prompt(cluster.router.decide(PD, turn, cluster.pods), turn, cluster.state, 900, "m")
    longer = {"prompt_tokens": 2120, "prefix": make_prefix(212, 2120), "usual_output_tokens": 10**6}
    assert cluster.decide(**longer).last.seconds == pytest.approx(0.06)


def test_other_routers_write_about_as_much_for_each_of_their_requests() -> None:
    for others, cached in ((0, True), (16, False)):
        sample = replace(QUIET, kv_usage=0.5, kv_capacity_tokens=40_000, running=4 + others)
        cluster = Cluster(samples={FIRST.uid: sample})
        turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
        learn_prompt(cluster.router.decide(PD, turn, cluster.pods), turn, cluster.state, 50, "m")
        other = structs.replace(FACTS, prompt_tokens=3000)
        learn_prompt(cluster.decide(), other, cluster.state, 0, "m")
        longer = {"prompt_tokens": 2120, "prefix": make_prefix(212, 2120)}
        seconds = cluster.decide(**longer, usual_output_tokens=10**6).last.seconds
        assert (seconds == pytest.approx(0.065)) is cached


# --- Learning --------------------------------------------------------------------------------


def test_a_pod_of_which_nothing_is_known_gets_one_request_at_a_time() -> None:
    cluster = Cluster(slowdown=1.2)
    cluster.whole.forget(FIRST.uid)
    decision = cluster.decide()
    # It may be four times as slow.
    assert decision.last.seconds == pytest.approx(0.4)
    note_sent(decision, cluster.state)
    assert cluster.explain() == "speed not known (1)"
    learn_first_token(decision, decision.reason, cluster.pods.model, cluster.state, 0.12)
    assert cluster.decide().last.seconds == pytest.approx(0.1)


def test_a_pod_that_turns_out_slow_gets_no_more() -> None:
    cluster = Cluster(queued=100)
    for _ in range(20):
        decision = cluster.decide()
        if not decision.whole:
            break
        note_sent(decision, cluster.state)
        learn_first_token(decision, decision.reason, cluster.pods.model, cluster.state, 5.0)
        cluster.now += 1.0
    assert not decision.whole


@pytest.mark.parametrize(("statuses", "refused"), [((500,), True), ((400, 400), False)])
def test_a_pod_that_refuses_is_remembered_for_a_while(
    statuses: tuple[int, ...], refused: bool
) -> None:
    cluster = Cluster()
    decision = cluster.decide()
    note_sent(decision, cluster.state)
    for status in statuses:
        learn_status(decision, decision.reason, cluster.state, status)
    assert cluster.decide().whole is not refused
    learn_status(decision, decision.reason, cluster.state, 400)
    assert cluster.explain() == "has refused (1)"
    cluster.now += 601.0
    cluster.know(FIRST)
    assert cluster.decide().whole


def test_who_serves_between_two_refusals_is_none_that_refuses() -> None:
    cluster = Cluster()
    decision = cluster.decide()
    note_sent(decision, cluster.state)
    for status in (400, 404, 200, 422, 400):
        learn_status(decision, decision.reason, cluster.state, status)
    assert cluster.decide().whole


# --- Whatever the figures --------------------------------------------------------------------

FIGURES = st.fixed_dictionaries(
    {
        "prompt_tokens": st.integers(1, 200_000),
        "output_tokens": st.integers(0, 4000),
        "usual_output_tokens": st.integers(0, 4000),
    }
)
SAMPLES = st.builds(
    EngineSample,
    at=st.just(0.0),
    own_requests=st.integers(0, 300),
    running=st.floats(0, 300),
    waiting=st.floats(0, 3),
    kv_usage=st.one_of(st.none(), st.floats(0, 1)),
    kv_capacity_tokens=st.one_of(st.none(), st.integers(1, 10**6)),
    gap_s=st.one_of(st.none(), st.floats(1e-4, 1)),
    computes_prompts=st.sampled_from([None, True, False]),
)


@given(facts=FIGURES, sample=SAMPLES, queued=st.integers(0, 10**6), handover_s=st.floats(0, 2))
def test_a_pod_that_is_not_known_to_compute_prompts_never_serves_whole(
    facts: dict[str, int], sample: EngineSample, queued: int, handover_s: float
) -> None:
    for pod in (
        replace(FIRST, computes_prompts=False),
        make_pod("d", Role.DECODE, engine="sglang"),
    ):
        prefill = make_pod("prefill", engine=pod.engine)
        cluster = Cluster(pod, queued=queued, handover_s=handover_s, samples={pod.uid: sample})
        cluster.pods = make_model_pods(prefill, pod)
        assert not cluster.decide(**facts).whole


@given(
    facts=FIGURES,
    sample=SAMPLES,
    queued=st.integers(0, 10**6),
    handover_s=st.floats(0, 2),
    factor=st.floats(0.1, 20),
)
def test_who_serves_whole_is_faster_by_prediction_and_slows_nobody_down_too_much(
    facts: dict[str, int], sample: EngineSample, queued: int, handover_s: float, factor: float
) -> None:
    target = 0.05
    cluster = Cluster(
        queued=queued, handover_s=handover_s, samples={FIRST.uid: sample}, gap_s=target
    )
    cluster.know(FIRST, factor)
    decision = cluster.decide(**facts)
    ways = decision.ways
    assert ways is not None
    if decision.whole and decision.reason == "faster":
        assert ways.whole_s is not None
        assert ways.whole_s < ways.two_legs_s
        assert not sample.waiting
        tokens = facts["usual_output_tokens"] or facts["output_tokens"] or 1
        if sample.gap_s is not None:
            assert sample.gap_s + ways.compute_s / tokens <= target


def test_pods_that_cannot_have_it_take_no_place_among_the_best_of_many() -> None:
    """Those that have most of the prompt are full, or not for this request."""
    many = [
        make_pod(f"d{number}", Role.DECODE, labels={"zone": str(number < 6)})
        for number in range(100)
    ]
    samples = {pod.uid: QUIET for pod in many}
    for pod in many[6:12]:
        samples[pod.uid] = replace(QUIET, waiting=1)
    cluster = Cluster(*many, samples=samples)
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    for blocks, holders in ((200, many[:12]), (150, many[12:13])):
        prefix = make_prefix(blocks, 2005)
        for pod in holders:
            last = structs.replace(cluster.decide().last, pod=pod)
            first = Decision((), last)
            learn_prompt(first, structs.replace(turn, prefix=prefix), cluster.state, 50, "m")
    for _ in range(20):
        decision = cluster.decide(
            prompt_tokens=2120,
            prefix=make_prefix(212, 2120),
            selector=parse_selector("zone!=True"),
        )
        assert (decision.reason, decision.last.pod) == ("faster", many[12])


def test_of_many_pods_the_one_that_has_the_conversation_is_found() -> None:
    many = [make_pod(f"d{number}", Role.DECODE) for number in range(100)]
    cluster = Cluster(*many)
    turn = structs.replace(FACTS, prompt_tokens=2005, prefix=make_prefix(200, 2005))
    first = structs.replace(cluster.decide(), reason="")
    learn_prompt(first, turn, cluster.state, 50, "m")
    longer = {"prompt_tokens": 2120, "prefix": make_prefix(212, 2120)}
    decision = cluster.decide(**longer)
    assert (decision.reason, decision.last.pod) == ("faster", first.last.pod)
    assert len(decision.last.candidates) < 20
