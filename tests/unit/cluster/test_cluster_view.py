"""The view of the pods, and where the newest one is kept."""

from typing import Any

import pytest
from factories import MODEL, make_model_pods, make_pod
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pod_config import parse_config
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView, ModelPods, PodCache

E, P, D, BOTH, OTHER = Role.ENCODE, Role.PREFILL, Role.DECODE, Role.BOTH, Role.OTHER


def names(pods: tuple[Pod, ...]) -> list[str]:
    return [pod.name for pod in pods]


def test_pods_are_sorted_by_what_they_may_be_used_for() -> None:
    pods = make_model_pods(
        make_pod("p0", P, roleset="a"),
        make_pod("p1", P, roleset="a", ready=False),
        make_pod("p2", P, roleset="alone"),
        make_pod("d0", D, roleset="a"),
        make_pod("d1", D, roleset="a", ready=False),
        make_pod("d2", D, roleset="without-prefill"),
        make_pod("b0", BOTH),
        make_pod("b1", BOTH, ready=False),
        make_pod("o0", OTHER),
    )
    assert pods.model == MODEL
    assert names(pods.pods) == ["p0", "p1", "p2", "d0", "d1", "d2", "b0", "b1", "o0"]
    assert names(pods.prefill) == ["p0"]
    assert {key.roleset: names(group) for key, group in pods.decode.items()} == {
        "a": ["d0"],
        "without-prefill": ["d2"],
    }
    assert names(pods.whole) == ["d0", "d2", "b0"]


def test_a_prefill_pod_whose_decode_pods_are_not_ready_is_of_no_use() -> None:
    pods = make_model_pods(make_pod("p", P), make_pod("d", D, ready=False))
    assert pods.prefill == ()
    assert pods.whole == ()


@pytest.mark.parametrize("other", [{"roleset": "x"}, {"engine": "x"}, {"namespace": "x"}])
def test_pairs_cross_neither_rolesets_nor_engines_nor_namespaces(other: dict[str, str]) -> None:
    assert make_model_pods(make_pod("p", P), make_pod("d", D, **other)).prefill == ()


def test_who_encodes_does_so_for_those_who_compute_prompts_in_its_roleset() -> None:
    prefill, decode, both = make_pod("p", P), make_pod("d", D), make_pod("b", BOTH)
    encoders = [make_pod(f"e{number}", E) for number in range(2)]
    others = [
        make_pod("e2", E, ready=False),
        make_pod("e3", E, roleset="x"),
        make_pod("e4", E, revision="v2"),
        make_pod("e5", E, engine="sglang"),
    ]
    pods = make_model_pods(prefill, decode, both, *encoders, *others)
    assert pods.find_encoders(prefill) == tuple(encoders)
    assert not pods.find_encoders(decode)
    assert not pods.find_encoders(both)
    assert pods.whole == (decode, both)
    assert pods.disaggregated


def test_where_no_pod_is_for_prefill_alone_all_take_what_is_encoded() -> None:
    encoder, decode, both = make_pod("e", E), make_pod("d", D), make_pod("b", BOTH)
    pods = make_model_pods(encoder, decode, both)
    assert pods.find_encoders(decode) == pods.find_encoders(both) == (encoder,)
    # One that is away has taken it, and will again: the others are not set up for it.
    pods = make_model_pods(encoder, decode, both, make_pod("p", P, ready=False))
    assert not pods.find_encoders(decode)


def test_encoders_may_have_an_image_of_their_own() -> None:
    encoder, prefill = make_pod("e", E, image="sha256:1"), make_pod("p", P, image="sha256:2")
    pods = make_model_pods(encoder, prefill.take_for("sha256:2"), make_pod("d", D))
    assert pods.find_encoders(prefill.take_for("sha256:2")) == (encoder,)
    assert not make_model_pods(make_pod("b", BOTH)).takers


@pytest.mark.parametrize(
    ("pods", "disaggregated"),
    [
        ([], False),
        ([make_pod(role=BOTH)], False),
        ([make_pod(role=BOTH), make_pod(role=P)], True),
        ([make_pod(role=OTHER)], False),
        ([make_pod(role=D)], True),
        ([make_pod(role=P, ready=False)], True),
    ],
)
def test_a_model_is_disaggregated_if_any_of_its_pods_has_a_part(
    pods: list[Pod], disaggregated: bool
) -> None:
    assert make_model_pods(*pods).disaggregated is disaggregated


def test_the_first_ready_pod_with_a_configuration_speaks_for_all() -> None:
    first = parse_config('{"profiles": {"a": {}}}')
    second = parse_config('{"profiles": {"b": {}}}')
    plain, old = make_pod("plain"), make_pod("old", config=second, ready=False)
    pods = [plain, old, make_pod("one", config=first), make_pod("two", config=second)]
    assert make_model_pods(*pods).config is first
    assert make_model_pods(plain, old).config is second
    assert make_model_pods(plain).config is None


def test_partners_are_the_decode_pods_of_the_prefill_pods_rolesets() -> None:
    pods = make_model_pods(
        make_pod("p2", P, roleset="2"),
        make_pod("p1", P, roleset="1"),
        *(make_pod(f"d{number}", D, roleset=number) for number in "1231"),
    )
    assert [pod.roleset for pod in pods.partners] == ["2", "1", "1"]
    kept = pods.keep_pairs(pods.prefill[1:], pods.decode)
    assert [pod.roleset for pod in kept.partners] == ["1", "1"]
    assert kept.prefill == pods.prefill[1:]


@st.composite
def _pods(draw: st.DrawFn) -> list[Pod]:
    return [
        make_pod(
            f"pod-{number}",
            draw(st.sampled_from(Role)),
            model=draw(st.sampled_from(["m1", "m2"])),
            roleset=draw(st.sampled_from(["", "a", "b"])),
            engine=draw(st.sampled_from(["vllm", "sglang"])),
            ready=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 8)))
    ]


@settings(max_examples=60, deadline=None)
@given(_pods())
def test_a_view_holds_every_pod_once_and_offers_only_ready_ones_with_partners(
    pods: list[Pod],
) -> None:
    view = ClusterView.build(iter(pods))
    assert sorted(names(tuple(view.pods))) == sorted(names(tuple(pods)))
    assert set(view.models) == set(view.names) == {pod.model for pod in pods}
    assert len(view.names) == len(view.models)
    for model, group in view.models.items():
        ready = {pod for pod in pods if pod.ready and pod.model == model}
        decodes = {pod for pod in ready if pod.role is D}
        assert {pod for each in group.decode.values() for pod in each} == decodes
        assert all(pod.pairing == key for key, each in group.decode.items() for pod in each)
        assert set(group.prefill) == {
            pod
            for pod in ready
            if pod.role is P and any(pod.pairing == decode.pairing for decode in decodes)
        }
        assert set(group.whole) == {
            pod for pod in ready if pod.role is BOTH or (pod.role is D and pod.engine == "vllm")
        }


def test_a_view_cannot_be_changed() -> None:
    view = ClusterView.build([make_pod(role=D)])
    with pytest.raises(TypeError):
        view.models["other"] = ModelPods.group("other", ())  # type: ignore[index]
    with pytest.raises(TypeError):
        view.models[MODEL].decode[make_pod().pairing] = ()  # type: ignore[index]


def test_a_cache_is_empty_and_not_synced_until_a_source_delivers() -> None:
    cache = PodCache()
    assert (cache.synced, cache.view.pods) == (False, ())
    cache.replace(iter([make_pod()]))
    assert (cache.synced, set(cache.view.models)) == (True, {MODEL})


def test_a_cache_that_gets_no_pods_is_synced() -> None:
    cache = PodCache()
    cache.replace(())
    assert cache.synced


def test_what_has_been_synced_once_stays_so() -> None:
    cache = PodCache()
    cache.publish(ClusterView.build([make_pod()]), synced=False)
    assert (cache.synced, set(cache.view.models)) == (False, {MODEL})
    cache.publish(ClusterView.build([]), synced=True)
    cache.publish(ClusterView.build([]), synced=False)
    assert cache.synced


def test_a_view_that_was_taken_stays_as_it_was() -> None:
    cache = PodCache()
    cache.replace([make_pod()])
    taken = cache.view
    cache.replace([])
    assert set(taken.models) == {MODEL}
    assert not cache.view.models


@pytest.mark.parametrize(
    ("before", "after", "restarted"),
    [
        ({"started": "0/a"}, {"started": "1/b"}, True),
        ({"started": "0/a"}, {"started": "0/a"}, False),
        ({"started": "0/a"}, {"started": "0/a", "ready": False}, False),
        ({"started": "0/a"}, {"started": ""}, False),
        ({"started": ""}, {"started": "0/a"}, False),
        ({"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, True),
        ({"port": 8000}, {"port": 8001}, True),
    ],
)
def test_an_engine_that_is_another_one_under_the_same_uid_is_told(
    before: dict[str, Any], after: dict[str, Any], restarted: bool
) -> None:
    gone: list[str] = []
    anew: list[str] = []
    cache = PodCache(gone.append, anew.append)
    cache.replace([make_pod("a", **before), make_pod("b", D)])
    assert anew == []
    cache.replace([make_pod("a", **after), make_pod("b", D)])
    assert anew == (["uid-a"] if restarted else [])
    assert gone == []
    cache.replace([make_pod("b", D)])
    assert gone == ["uid-a"]
