"""What users may write for a strategy: a name, or a list of algorithms with weights."""

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings.choices import ALGORITHM_NAMES, STRATEGY_NAMES, UNLISTED_ALGORITHMS
from pdrouter.settings.combination import CombinationInvalid, parse_strategy

STRATEGIES = create_strategies()
PODS = make_model_pods(*(make_pod(f"d{number}", Role.DECODE) for number in range(3)))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("least-request", [("least-request", 1)]),
        ("least-request:5", [("least-request", 5)]),
        ("LEAST_REQUEST", [("least-request", 1)]),
        (" prefix-cache : 2 , least-request ", [("prefix-cache", 2), ("least-request", 1)]),
        ("prefix-cache:0,least-request", [("least-request", 1)]),
        ("prefix-cache,prefix-cache:3,least-request", [("prefix-cache", 4), ("least-request", 1)]),
        ("random:1000000", [("random", 1_000_000)]),
        ("random,least-request:0", [("random", 1)]),
        ("pd:3", [("pd", 3)]),
        ("pd:0,least-request", [("least-request", 1)]),
    ],
)
def test_a_list_has_names_and_weights(text: str, weights: list[tuple[str, int]]) -> None:
    chosen = parse_strategy(text)
    assert chosen.weights == weights
    assert not chosen.note


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "routing strategy '' is none of pd, random, least-request"),
        ("fastest", "routing strategy 'fastest' is none of pd, random, least-request"),
        ("least-request,", "routing strategy '' is none of"),
        ("least-request,,prefix-cache", "routing strategy '' is none of"),
        ("least-request:1:2", "the weight of least-request is no whole number from 0 to 1000000"),
        ("least-request:", "the weight of least-request"),
        ("least-request:1.5", "the weight of least-request"),
        ("least-request:-1", "the weight of least-request"),
        ("least-request:1000001", "the weight of least-request"),
        ("least-request:" + "0" * 14 + "9" * 8, "the weight of least-request"),
        ("least-request:٣", "the weight of least-request"),
        ("least-request:0,prefix-cache:0", "all weights are 0"),
        ("random,least-request", "random gives no scores: it cannot be in a list with others"),
        ("slo-unheard-of", "routing strategy 'slo-unheard-of' is none of"),
        ("slo-unheard-of:0,pd", "routing strategy 'slo-unheard-of' is none of"),
        (",".join(["least-request"] * 65), "a list has at most 64 items"),
    ],
)
def test_anything_else_is_said_to_be_wrong(text: str, complaint: str) -> None:
    with pytest.raises(CombinationInvalid) as caught:
        STRATEGIES.find(text)
    assert str(caught.value).startswith(complaint)


def test_what_stands_alone_replaces_a_list_and_says_so() -> None:
    strategy = STRATEGIES.find("least-request:9,pd,random")
    assert strategy.name == "pd"
    decision = strategy.decide(RoutingFacts(10, "n"), PODS, make_state())
    assert decision.notes[0] == "pd stands alone: the others do not count"


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_each_name_is_a_strategy_with_or_without_a_weight(name: str) -> None:
    assert STRATEGIES.find(name) is STRATEGIES[name]
    assert STRATEGIES.find(f"{name}:7") is STRATEGIES[name]


@pytest.mark.parametrize("name", [name for name in ALGORITHM_NAMES if name != "least-request"])
def test_each_algorithm_that_gives_scores_can_be_in_a_list(name: str) -> None:
    text = f"least-request:2, {name}"
    if name in UNLISTED_ALGORITHMS and not name.startswith("slo"):
        with pytest.raises(CombinationInvalid, match=f"{name} gives no scores"):
            STRATEGIES.find(text)
        return
    strategy = STRATEGIES.find(text)
    decision = strategy.decide(RoutingFacts(10, None), PODS, make_state())
    assert decision.whole
    if name.startswith("slo"):
        assert strategy.name == name
        return
    assert strategy.name == f"least-request:2,{name}:1"
    assert strategy.list_algorithms("", "") == {"least-request", name}
    assert decision.reason == "strategy-list"


def test_lists_that_clients_think_of_do_not_fill_the_memory() -> None:
    book = create_strategies()
    for weight in range(2000):
        assert book.find(f"least-request,prefix-cache:{weight + 1}").name
    long = "least-request," + " " * 5000 + "prefix-cache"
    assert book.find(long).name == "least-request:1,prefix-cache:1"
    assert len(book._found) == 256
    assert all(len(text) <= 1024 for text in book._found)
    assert len(book) == len(STRATEGY_NAMES)
