"""Which pods count as slow or fast: those that are, and no others."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.load.pod_speeds import PodKind, PodSpeeds
from pdrouter.load.prefill_rates import PrefillRates

PODS = "abcdefgh"


def work(
    speeds: PodSpeeds,
    slowness: dict[str, float],
    *,
    legs: int = 400,
    noise: float = 0.2,
    seed: int = 0,
) -> None:
    """Let pods carry out prompts of mixed lengths, some of them together."""
    random = Random(seed)
    for _ in range(legs):
        uid = random.choice(sorted(slowness))
        together = [random.lognormvariate(0, 1) for _ in range(random.choice((1, 1, 1, 2, 4)))]
        seconds = sum(together) * slowness[uid] * random.uniform(1 - noise, 1 + noise)
        for predicted in together:
            # The first is seen with all of the time.
            speeds.observe(uid, seconds, predicted)
            seconds = 0.0


@pytest.mark.parametrize("pods", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(5))
def test_equal_pods_have_no_factor(pods: int, seed: int) -> None:
    speeds = PodSpeeds()
    for _ in range(10):
        work(speeds, {str(pod): 1.0 for pod in range(pods)}, legs=40 * pods, seed=seed)
        assert speeds.factors == {}


def test_few_legs_that_scatter_are_no_evidence() -> None:
    """Means of eight legs are far apart by chance alone; few of them look like more than that."""
    apart = wrong = 0
    for seed in range(60):
        speeds, random = PodSpeeds(), Random(seed)
        means = []
        for uid in PODS:
            times = [random.lognormvariate(0.0, 0.5) for _ in range(8)]
            means.append(sum(times) / len(times))
            for each in times:
                speeds.observe(uid, each, 1.0)
        apart += max(means) / min(means) > 1.5
        wrong += bool(speeds.factors)
    assert apart > 30
    assert wrong <= 6


@given(st.lists(st.tuples(st.sampled_from(PODS), st.floats(0.75, 1.25)), min_size=50, max_size=400))
@settings(deadline=None, max_examples=40)
def test_what_is_within_the_band_changes_nothing(legs: list[tuple[str, float]]) -> None:
    """However it is spread over the pods: a quarter up and down is 1.67 between two of them."""
    speeds = PodSpeeds()
    for uid, noise in legs:
        speeds.observe(uid, noise, 1.0)
    for factor in speeds.factors.values():
        assert factor == pytest.approx(1.0, abs=0.67)
    shares = [speeds.factors.get(uid, 1.0) for uid in PODS]
    assert max(shares) / min(shares) <= 1.67


@pytest.mark.parametrize("slowness", [1.6, 2.0, 5.0, 0.5])
@pytest.mark.parametrize("pods", [3, 4, 8])
def test_a_pod_that_is_slow_or_fast_is_found(slowness: float, pods: int) -> None:
    speeds = PodSpeeds()
    truth = {str(pod): 1.0 for pod in range(pods)} | {"odd": slowness}
    work(speeds, truth, legs=40 * len(truth))
    assert speeds.factors.keys() == {"odd"}
    assert speeds.factors["odd"] == pytest.approx(slowness, rel=0.2)


def test_of_two_pods_the_slower_is_the_odd_one() -> None:
    speeds = PodSpeeds()
    work(speeds, {"a": 1.0, "slow": 2.0})
    assert speeds.factors.keys() == {"slow"}


def test_few_legs_or_one_long_one_say_nothing() -> None:
    speeds = PodSpeeds()
    work(speeds, dict.fromkeys(PODS, 1.0))
    for _ in range(3):
        speeds.observe("new", 3.0, 1.0)
    speeds.observe("stalled", 60.0, 1.0)
    work(speeds, dict.fromkeys(PODS, 1.0), legs=40)
    assert speeds.factors == {}


def test_a_pod_is_not_slow_for_ever() -> None:
    speeds = PodSpeeds()
    work(speeds, dict.fromkeys(PODS, 1.0) | {"odd": 3.0})
    work(speeds, dict.fromkeys(PODS, 1.0) | {"odd": 1.0}, legs=1500)
    assert speeds.factors == {}


def test_a_slow_pod_that_gets_no_requests_is_looked_at_anew() -> None:
    speeds = PodSpeeds()
    work(speeds, dict.fromkeys(PODS, 1.0) | {"odd": 3.0})
    work(speeds, dict.fromkeys(PODS, 1.0), legs=500)
    assert speeds.factors.keys() == {"odd"}
    work(speeds, dict.fromkeys(PODS, 1.0), legs=1500)
    assert speeds.factors == {}


def test_pods_are_compared_with_those_of_their_model() -> None:
    speeds = PodSpeeds()
    small, large = dict.fromkeys("abc", 1.0), dict.fromkeys("xyz", 9.0)
    for uid in small:
        speeds.note_kind(uid, PodKind("small"))
    for uid in (*large, "new"):
        speeds.note_kind(uid, PodKind("large"))
    work(speeds, small | large, legs=800)
    assert speeds.factors.keys() == {*large, "new"}
    # They are equal, and one of which nothing is known is taken for one of them.
    assert len(set(speeds.factors.values())) == 1
    assert speeds.factors["new"] == pytest.approx(9.0, rel=0.2)


def test_pods_are_compared_with_those_of_their_hardware() -> None:
    """Half of the pods being slow is no chance, and no pod's own fault."""
    speeds = PodSpeeds()
    fast, slow = dict.fromkeys("abc", 1.0), dict.fromkeys("wxyz", 2.0)
    for uid in fast:
        speeds.note_kind(uid, PodKind("m", "h100"))
    for uid in (*slow, "new"):
        speeds.note_kind(uid, PodKind("m", "a10"))
    work(speeds, fast | slow | {"z": 4.0}, legs=1200)
    factors = {uid: speeds.factors.get(uid, 1.0) for uid in (*fast, *slow, "new")}
    usual = factors["w"]
    assert {factors[uid] for uid in "wxy"} == {usual}
    assert len({factors[uid] for uid in fast}) == 1
    assert usual / factors["a"] == pytest.approx(2.0, rel=0.2)
    assert factors["new"] == usual
    assert factors["z"] / usual == pytest.approx(2.0, rel=0.2)


def test_hardware_that_is_called_otherwise_and_is_as_fast_makes_no_difference() -> None:
    speeds = PodSpeeds()
    for uid in PODS:
        speeds.note_kind(uid, PodKind("m", f"node-{uid}"))
    work(speeds, dict.fromkeys(PODS, 1.0), legs=800)
    assert speeds.factors == {}


def test_pods_that_come_and_go_together_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of a thousand is there at once, and a look goes through all of them."""
    looks: list[None] = []
    compare = PodSpeeds._compare

    def count(speeds: PodSpeeds) -> None:
        looks.append(None)
        compare(speeds)

    monkeypatch.setattr(PodSpeeds, "_compare", count)
    speeds = PodSpeeds()
    for number in range(1000):
        speeds.note_kind(str(number), PodKind("m", "h100"))
    assert not looks
    assert speeds.factors == {}
    assert len(looks) == 1
    work(speeds, dict.fromkeys(PODS, 1.0) | {"odd": 3.0}, legs=800)
    assert speeds.factors.keys() == {"odd"}
    kept = speeds.factors
    assert speeds.factors is kept
    looks.clear()
    for number in range(1000):
        speeds.forget(str(number))
    speeds.forget("odd")
    assert speeds.factors == {}
    assert len(looks) == 1


def test_a_pod_that_is_gone_leaves_nothing() -> None:
    speeds = PodSpeeds()
    speeds.note_kind("odd", PodKind("m"))
    work(speeds, dict.fromkeys(PODS, 1.0) | {"odd": 3.0})
    for uid in (*PODS, "odd", "nobody"):
        speeds.forget(uid)
    assert speeds.factors == {}
    assert not speeds._kinds
    assert not speeds._records


def test_a_long_cached_prefix_does_not_make_a_pod_look_slow() -> None:
    """Each new token looks at all that is cached before it."""
    rates = PrefillRates(10_000)
    random = Random(3)

    def compute(tokens: int, cached: int) -> float:
        return tokens / 10_000 + tokens * (tokens + 2 * cached) * 1e-9

    for _ in range(2000):
        uid = random.choice("abcd")
        # One has the conversations that have become long.
        cached = random.randint(20_000, 60_000) if uid == "a" else 0
        tokens = random.randint(500, 8000)
        rates.observe(uid, rates.default.weigh(tokens, cached), compute(tokens, cached))
    assert not rates.speeds.factors
    for cached in (0, 50_000):
        expected = pytest.approx(compute(2000, cached), rel=0.1)
        assert rates.predict("a", 2000, cached) == expected
        assert rates.freeze().predict("a", 2000, cached) == expected
