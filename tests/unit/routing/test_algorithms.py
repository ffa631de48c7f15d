"""What the algorithms measure, by tables that follow from aibrix's formulas."""

from collections.abc import Sequence
from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample, RequestMeans
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.policy import DEFAULT_OPTIONS, RankingRequest
from pdrouter.routing.scoring import Measures
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import SCORERS, create_strategies
from pdrouter.settings.choices import ALGORITHM_NAMES, UNLISTED_ALGORITHMS

UIDS = [f"uid-p{number}" for number in range(4)]
FACTS = RoutingFacts(1000, None, output_tokens=200)
STRATEGIES = create_strategies()


def make_samples(*changes: dict[str, Any] | None) -> dict[str, EngineSample]:
    return {
        uid: EngineSample(0.0, **each)
        for uid, each in zip(UIDS, changes, strict=False)
        if each is not None
    }


def measure(name: str, state: RoutingState, pods: int = 3, leg: Leg = Leg.DECODE) -> Measures:
    scorer = SCORERS[name](DEFAULT_OPTIONS)
    candidates = [make_pod(f"p{number}", Role.BOTH) for number in range(pods)]
    return scorer.measure(candidates, RankingRequest(FACTS, state), leg)


def choose(name: str, state: RoutingState, facts: RoutingFacts = FACTS, pods: int = 3) -> Decision:
    whole = make_model_pods(*(make_pod(f"p{number}", Role.BOTH) for number in range(pods)))
    return STRATEGIES.find(name).decide(facts, whole, state)


def list_chosen(name: str, state: RoutingState, pods: int = 3) -> set[str]:
    chosen = set()
    for seed in range(40):
        state.random.seed(seed)
        chosen.add(choose(name, state, pods=pods).last.pod.name)
    return chosen


# --- Numbers of engines ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "samples", "values", "chosen"),
    [
        (
            "least-gpu-cache",
            [{"kv_usage": 0.5}, {"kv_usage": 0.25}, {"kv_usage": 0.75}],
            [0.5, 0.25, 0.75],
            {"p1"},
        ),
        # Ties at random, as in aibrix; who says nothing is left out.
        (
            "least-gpu-cache",
            [{"kv_usage": 0.5}, {"kv_usage": 0.5}, {}],
            [0.5, 0.5, None],
            {"p0", "p1"},
        ),
        ("least-gpu-cache", [None, None, {}], [None, None, None], {"p0", "p1", "p2"}),
        # aibrix wants both gauges, and so is random but for older vLLM.
        (
            "least-kv-cache",
            [{"kv_usage": 0.25, "cpu_usage": 0.5}, {"kv_usage": 0.5, "cpu_usage": 0.125}, {}],
            [0.75, 0.625, None],
            {"p1"},
        ),
        (
            "least-kv-cache",
            [{"kv_usage": 0.25}, {"kv_usage": 0.5}, {"cpu_usage": 0.0}],
            [0.25, 0.5, None],
            {"p0"},
        ),
        (
            "least-utilization",
            [{"utilization": 0.5}, {"utilization": 0.0}, {"kv_usage": 0.0}],
            [0.5, 0.0, None],
            {"p1"},
        ),
        (
            "least-utilization",
            [{"kv_usage": 0.5}, {"kv_usage": 0.125}, {}],
            [0.5, 0.125, None],
            {"p1"},
        ),
        # 2 * prompt + generated; in aibrix it is always 0.
        (
            "throughput",
            [
                {"prompt_tokens_per_s": 100.0, "generated_tokens_per_s": 50.0},
                {"prompt_tokens_per_s": 50.0, "generated_tokens_per_s": 200.0},
                {"generated_tokens_per_s": 240.0},
            ],
            [250.0, 300.0, 240.0],
            {"p2"},
        ),
        (
            "throughput",
            [{"prompt_tokens_per_s": 100.0}, {}, None],
            [200.0, None, None],
            {"p0"},
        ),
    ],
)
def test_numbers_of_engines_are_taken_as_they_are(
    name: str, samples: list[dict[str, Any]], values: list[float | None], chosen: set[str]
) -> None:
    state = make_state(samples=make_samples(*samples))
    assert measure(name, state).values == values
    assert list_chosen(name, state) == chosen


@pytest.mark.parametrize(
    ("name", "samples", "note"),
    [
        ("least-gpu-cache", [{"kv_usage": 0.5}] * 3, ""),
        ("least-gpu-cache", [{"kv_usage": 0.5}, {}, None], "2 of 3 engines do not say their"),
        ("throughput", [], "3 of 3 engines do not say their tokens_per_s"),
        ("least-utilization", [{"utilization": 0.5}] * 3, ""),
        ("least-utilization", [{"kv_usage": 0.5}] * 3, "no engine says its utilization: kv_usage"),
        ("least-busy-time", [], "no engine says how busy its GPU is"),
        ("least-latency", [], "no engine says what requests take: the predicted time"),
    ],
)
def test_what_is_not_known_is_noted(name: str, samples: list[dict[str, Any]], note: str) -> None:
    decision = choose(name, make_state(samples=make_samples(*samples)))
    assert bool(decision.notes) == bool(note)
    assert not note or decision.notes[0].startswith(f"{name}: {note}")


def test_requests_sent_since_the_sample_count_as_much_as_one_does_on_average() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    samples = make_samples(
        {"kv_usage": 0.2, "own_requests": 1, "running": 4},
        {"kv_usage": 0.3, "own_requests": 2, "running": 6},
        {"own_requests": 0},
    )
    state = make_state(ledger, samples=samples)
    for uid, number in zip(UIDS, (3, 2, 1), strict=False):
        for _ in range(number):
            ledger.start(Leg.DECODE, uid)
    # A request has 0.5 / 10 of a pod's memory on average.
    assert measure("least-gpu-cache", state).values == [pytest.approx(0.3), 0.3, None]


def test_a_burst_between_two_samples_does_not_all_go_to_one_pod() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    full = {"own_requests": 10, "running": 10}
    samples = make_samples(*({"kv_usage": 0.1 * (number + 1), **full} for number in range(4)))
    state = make_state(ledger, samples=samples)
    for uid in UIDS:
        for _ in range(10):
            ledger.start(Leg.DECODE, uid)
    got = dict.fromkeys(UIDS, 0)
    for _ in range(40):
        uid = choose("least-gpu-cache", state, pods=4).last.pod.uid
        ledger.start(Leg.DECODE, uid)
        got[uid] += 1
    counts = list(got.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > 0


def test_the_pod_that_was_busy_least_is_taken() -> None:
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    for uid, begins, ends in ((UIDS[0], 0.0, 9.0), (UIDS[1], 9.0, 10.0), (UIDS[2], 0.0, 5.0)):
        now = begins
        scope = ledger.start(Leg.DECODE, uid)
        now = ends
        scope.release()
    now = 10.0
    state = make_state(ledger, clock=lambda: now)
    values = measure("least-busy-time", state).values
    assert values == pytest.approx([0.537, 0.095, 0.239], abs=0.001)
    assert list_chosen("least-busy-time", state) == {"p1"}


# --- Latency ---------------------------------------------------------------------------------


def means(
    queue: float | None,
    prefill: float | None,
    decode: float | None,
    prompt: float | None = None,
    output: float | None = None,
    **sample: Any,
) -> dict[str, Any]:
    return {"means": RequestMeans(queue, prefill, decode, prompt, output), **sample}


@pytest.mark.parametrize(
    ("samples", "values"),
    [
        # P = 1500, G = 150: queue + prefill * P / p + decode * G / g.
        (
            [
                means(1.0, 0.5, 2.0, 1000, 100, waiting=1),
                means(0.5, 1.0, 6.0, 2000, 200, waiting=2),
            ],
            [1.0 + 0.75 + 3.0, 0.5 + 0.75 + 4.5],
        ),
        # Without lengths all have the same: the plain sum.
        ([means(0.5, 0.25, 1.0), means(0.25, 0.25, 2.0)], [1.75, 2.5]),
        # One of them has no lengths: those of the others.
        (
            [means(0.0, 0.5, 1.0, 2000, 50), means(0.0, 0.5, 1.0)],
            [1.5, 1.5],
        ),
        # Where nobody waits now, those before have waited.
        ([means(3.0, 0.5, 1.0, waiting=0), means(3.0, 0.5, 1.0, waiting=1)], [1.5, 4.5]),
        # One that has had no request yet is worth a try; one that says nothing is not.
        ([means(0.5, 0.5, 1.0), means(None, None, None), {}], [2.0, 2.0, None]),
        ([means(None, None, None), {}], [0.0, None]),
        # A prefill pod decodes nothing.
        ([means(0.0, 0.5, None), means(0.0, 0.25, None)], [0.5, 0.25]),
    ],
)
def test_the_latency_is_that_of_a_usual_request(
    samples: list[dict[str, Any]], values: list[float | None]
) -> None:
    state = make_state(samples=make_samples(*samples))
    measured = measure("least-latency", state, len(samples))
    assert measured.values == [None if value is None else pytest.approx(value) for value in values]


def test_without_histograms_the_first_token_is_predicted() -> None:
    state = make_state(samples=make_samples({"waiting": 2}, {"waiting": 0}, {"waiting": 1}))
    # 1000 tokens at 8000 per second, behind as many prompts as wait.
    assert measure("least-latency", state).values == pytest.approx([0.375, 0.125, 0.25])
    assert list_chosen("least-latency", state) == {"p1"}


# --- Two drawn at random ---------------------------------------------------------------------


def test_power_of_two_takes_the_less_busy_of_two_and_never_the_busiest_of_all() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    state = make_state(ledger)
    for uid, number in zip(UIDS, (3, 2, 1, 0), strict=False):
        for _ in range(number):
            ledger.start(Leg.DECODE, uid)
    assert list_chosen("power-of-two", state, pods=4) == {"p1", "p2", "p3"}
    last = choose("power-of-two", state, pods=4).last
    assert len(last.candidates) == 2
    assert last.score == min(last.scores)


def test_power_of_two_with_one_pod_takes_it() -> None:
    assert choose("power-of-two", make_state(), pods=1).last.pod.name == "p0"


# --- All of them -----------------------------------------------------------------------------

PREFIX = PromptPrefix((1, 2, 3), (300, 600, 900), 1000)
_WITHOUT_PARTS = {"random", "least-request", "session-affinity"}
PAIRS = make_model_pods(
    *(make_pod(f"p{number}") for number in range(3)),
    *(make_pod(f"d{number}", Role.DECODE) for number in range(3)),
)


def make_busy_state(seed: int) -> RoutingState:
    """Pods of which something is known, but not of all the same."""
    ledger = Ledger(clock=lambda: 0.0)
    known = [
        means(0.1, 0.5, 2.0, 1000, 100, kv_usage=0.5, running=3, waiting=1, utilization=0.5),
        means(0.1, 0.2, 1.0, 1000, 100, kv_usage=0.1, running=1, waiting=0, utilization=0.1),
    ]
    samples = {
        f"uid-{role}{number}": EngineSample(0.0, **each)
        for role in "pd"
        for number, each in enumerate(known)
    }
    state = make_state(ledger, samples=samples, seed=seed)
    for uid in ("uid-d0", "uid-d0", "uid-d1"):
        ledger.start(Leg.DECODE, uid, 100)
    ledger.start(Leg.PREFILL, "uid-p0", 1000)
    state.decoded.expect(PREFIX.hashes, "uid-d1", 1000)
    state.prefixes.add(PREFIX.hashes, "uid-p1")
    return state


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_each_algorithm_ranks_either_leg_of_pd_alone_and_in_a_list(name: str) -> None:
    texts: Sequence[str] = (name,) if name in UNLISTED_ALGORITHMS else (name, f"{name}:2,conductor")
    for text in texts:
        for seed in range(5):
            facts = RoutingFacts(1000, None, PREFIX, prefill_policy=text, decode_policy=text)
            decision = STRATEGIES["pd"].decide(facts, PAIRS, make_busy_state(seed))
            assert decision.prefill is not None
            assert not [note for note in decision.notes if "none of" in note]
            for choice in decision.legs:
                assert choice.pod in choice.candidates
                assert choice.score == min(choice.scores)
                # Of one of these names, aibrix has a policy for decode pods, which tells none.
                assert choice.parts is not None or name in _WITHOUT_PARTS


@pytest.mark.parametrize("name", sorted(UNLISTED_ALGORITHMS), ids=lambda name: name)
def test_what_gives_no_scores_is_refused_in_a_list_for_a_leg(name: str) -> None:
    facts = RoutingFacts(1000, None, PREFIX, prefill_policy=f"ttft,{name}")
    decision = STRATEGIES["pd"].decide(facts, PAIRS, make_busy_state(0))
    assert decision.notes[0] == f"{name} gives no scores: it cannot be in a list with others"


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_each_algorithm_chooses_without_anything_known(name: str) -> None:
    decision = choose(name, make_state())
    assert decision.whole
    assert decision.reason == f"strategy-{name}"
    assert decision.last.policy == name


@pytest.mark.parametrize("leg", [Leg.PREFILL, Leg.DECODE])
@pytest.mark.parametrize("name", SCORERS)
def test_each_scorer_measures_every_pod_it_is_given(name: str, leg: Leg) -> None:
    state = make_busy_state(0)
    for pods in (PAIRS.prefill, PAIRS.partners):
        scorer = SCORERS[name](DEFAULT_OPTIONS)
        request = RankingRequest(FACTS, state)
        assert len(scorer.measure(pods, request, leg).values) == len(pods)
