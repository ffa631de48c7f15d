"""Data-parallel ranks: one pod that is several endpoints."""

from contextlib import suppress

import pytest
from factories import make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.kubernetes.containers import Container, EnvironmentVariable
from pdrouter.cluster.kubernetes.ranks import RANK_PORTS, RANKS, find_rank_flaw, read_ranks
from pdrouter.cluster.pods import Rank
from pdrouter.cluster.ranks import MOST_RANKS, Ranks, RanksInvalid, parse_ports, parse_size


def test_a_pod_with_one_rank_stays_what_it_is() -> None:
    pod = make_pod("p")
    for ranks in (Ranks(), Ranks(size=1), Ranks((8000,))):
        assert ranks.split(pod) == (pod,)
    assert (pod.rank, pod.number, pod.same_address, pod.own_name) == (None, None, (pod.uid,), "p")


def test_one_port_in_a_list_is_the_pods() -> None:
    (pod,) = Ranks((8001,)).split(make_pod("p"))
    assert (pod.name, pod.address, pod.metrics_port) == ("p", "10.0.0.1:8001", 8001)


def test_ranks_with_ports_of_their_own_are_pods_of_their_own() -> None:
    pod = make_pod("p", ip="fd00::1", port=8000, metrics_port=9000)
    pods = Ranks((8000, 8001)).split(pod)
    assert [each.uid for each in pods] == ["uid-p#0", "uid-p#1"]
    assert [each.name for each in pods] == ["p#0", "p#1"]
    assert [each.address for each in pods] == ["[fd00::1]:8000", "[fd00::1]:8001"]
    assert [each.metrics_port for each in pods] == [8000, 8001]
    assert [each.number for each in pods] == [None, None]
    assert [each.index for each in pods] == [0, 1]
    assert [each.same_address for each in pods] == [("uid-p#0",), ("uid-p#1",)]
    assert {each.pairing for each in pods} == {pod.pairing}


def test_ranks_behind_one_port_differ_in_their_numbers() -> None:
    pods = Ranks(size=3).split(make_pod("p"))
    assert [each.uid for each in pods] == ["uid-p#0", "uid-p#1", "uid-p#2"]
    assert [each.rank for each in pods] == [Rank(0, 3), Rank(1, 3), Rank(2, 3)]
    assert [each.index for each in pods] == [0, 1, 2]
    assert {each.address for each in pods} == {"10.0.0.1:8000"}
    assert {each.own_name for each in pods} == {"p"}
    assert {each.same_address for each in pods} == {("uid-p#0", "uid-p#1", "uid-p#2")}


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8000", (8000,)),
        ("8000,8001", (8000, 8001)),
        (" 8001 , 8000 ", (8001, 8000)),
        ("8000-8003", (8000, 8001, 8002, 8003)),
        ("8000-8000", (8000,)),
        ("65535", (65535,)),
        # As in an InferencePool.
        ('[{"number": 8000}, {"number": 8001}]', (8000, 8001)),
        (' [{"number":65535}]', (65535,)),
    ],
)
def test_ports_are_a_list_or_a_range(text: str, ports: tuple[int, ...]) -> None:
    assert parse_ports(text) == ports


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "-", "8000,", "8000-", "-8000", "0", "65536", "x", "8000,8000", "8001-8000"),
        *("[]", "[8000]", "[{}]", '[{"number": 8000}', '[{"number": "8000"}]', '[{"number": 0}]'),
        *('[{"number": 8000}, {"number": 8000}]', '[{"number": 65536}]', '[{"port": 8000}]'),
        str([{"number": port} for port in range(1, 300)]).replace("'", '"'),
        *("8000-8001-8002", "8000,8001-8003", "1e3", "٣", "65500-65600", "1-300", "1-99999"),
    ],
)
def test_other_ports_are_refused(text: str) -> None:
    with pytest.raises(RanksInvalid):
        parse_ports(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "257", "99999", "٣"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RanksInvalid):
        parse_size(text)
    assert parse_size(str(MOST_RANKS)) == MOST_RANKS


@given(st.text(max_size=30))
def test_no_text_breaks_it(text: str) -> None:
    with suppress(RanksInvalid):
        assert 0 < len(parse_ports(text)) <= MOST_RANKS


def run(*variables: tuple[str, str]) -> list[Container]:
    return [
        Container("proxy"),
        Container("engine", env=[EnvironmentVariable(*each) for each in variables]),
    ]


@pytest.mark.parametrize(
    ("said", "containers", "ranks"),
    [
        ({}, run(), Ranks()),
        ({RANK_PORTS: "8000-8001"}, run(), Ranks((8000, 8001))),
        ({RANK_PORTS: '[{"number": 8001}, {"number": 8003}]'}, run(), Ranks((8001, 8003))),
        ({RANKS: "4"}, run(), Ranks(size=4)),
        # As in aibrix.
        ({}, run(("data-parallel-size", "2")), Ranks((8000, 8001))),
        ({}, run(("data-parallel-size", "1")), Ranks((8000,))),
        ({}, run(("data-parallel-size", "")), Ranks()),
        ({}, run(("OTHER", "2")), Ranks()),
        ({RANKS: "4"}, run(("data-parallel-size", "2")), Ranks(size=4)),
    ],
)
def test_a_pod_says_what_ranks_it_has(
    said: dict[str, str], containers: list[Container], ranks: Ranks
) -> None:
    assert read_ranks(said.get, containers, 8000) == ranks
    assert find_rank_flaw(said.get, containers, 8000) == ""


@pytest.mark.parametrize(
    ("said", "containers"),
    [
        ({RANK_PORTS: "many"}, run()),
        ({RANK_PORTS: '[{"port": 8001}]'}, run()),
        ({RANKS: "many"}, run()),
        ({RANK_PORTS: "8000-8001", RANKS: "2"}, run()),
        ({}, run(("data-parallel-size", "many"))),
    ],
)
def test_what_cannot_be_is_told(said: dict[str, str], containers: list[Container]) -> None:
    assert find_rank_flaw(said.get, containers, 8000)
