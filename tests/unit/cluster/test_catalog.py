"""Views of a cluster as pods and adapters come and go."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.kubernetes.objects import Adapter
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.cluster.view import ClusterView


def make_pod(
    uid: str,
    role: Role = Role.BOTH,
    *,
    model: str = "m",
    namespace: str = "ns",
    roleset: str = "",
    ready: bool = True,
    unsupported: str = "",
) -> Pod:
    return Pod.create(
        uid=uid,
        name=f"pod-{uid}",
        ip="10.0.0.1",
        port=8000,
        model=model,
        role=role,
        namespace=namespace,
        roleset=roleset,
        ready=ready,
        unsupported=unsupported,
    )


def build(
    *pods: Pod, adapters: tuple[Adapter, ...] = (), merge_namespaces: bool = False
) -> ClusterView:
    catalog = Catalog(merge_namespaces=merge_namespaces)
    for pod in pods:
        catalog.put_pod(pod)
    for number, each in enumerate(adapters):
        catalog.put_adapter(str(number), each)
    return catalog.build(0.0)


def names(pods: tuple[Pod, ...]) -> set[str]:
    return {pod.uid for pod in pods}


def adapter(*instances: str, name: str = "lora", base: str = "m") -> Adapter:
    return Adapter("ns", name, base, frozenset(f"pod-{uid}" for uid in instances))


def test_a_model_is_found_by_its_name_and_by_its_namespace_and_name() -> None:
    view = build(make_pod("a"))
    assert view.names == ("m",)
    assert view.models["m"] is view.models["ns/m"]
    assert view.models["ns/m"].model == "m"


def test_the_same_name_in_two_namespaces_stays_apart() -> None:
    view = build(make_pod("a", namespace="x"), make_pod("b", namespace="y"))
    assert "m" not in view.models
    assert view.ambiguous == {"m": ("x/m", "y/m")}
    assert names(view.models["x/m"].whole) == {"a"}
    assert names(view.models["y/m"].whole) == {"b"}
    assert set(view.names) == {"x/m", "y/m"}


def test_namespaces_can_be_merged_but_pairs_do_not_cross_them() -> None:
    view = build(
        make_pod("a", Role.PREFILL, namespace="x"),
        make_pod("b", Role.DECODE, namespace="x"),
        make_pod("c", Role.PREFILL, namespace="y"),
        make_pod("d", Role.DECODE, namespace="z"),
        merge_namespaces=True,
    )
    pods = view.models["m"]
    assert names(pods.prefill) == {"a"}
    assert names(pods.whole) == {"b", "d"}
    assert view.ambiguous == {}


def test_a_pod_that_changes_its_model_moves() -> None:
    catalog = Catalog(merge_namespaces=False)
    catalog.put_pod(make_pod("a"))
    catalog.build(0.0)
    catalog.put_pod(make_pod("a", model="n"))
    view = catalog.build(0.0)
    assert view.names == ("n",)
    assert len(view.pods) == 1


def test_an_adapter_goes_to_the_pods_that_have_loaded_it() -> None:
    view = build(
        *(make_pod(uid, Role.PREFILL) for uid in "ab"),
        *(make_pod(uid, Role.DECODE) for uid in "cd"),
        adapters=(adapter("a", "d"),),
    )
    pods = view.models["lora"]
    assert pods.model == "lora"
    assert names(pods.prefill) == {"a"}
    assert names(pods.whole) == {"d"}
    assert set(view.names) == {"m", "lora"}


def test_an_adapter_on_prefill_pods_only_is_decoded_by_the_base_models_pods() -> None:
    view = build(
        make_pod("a", Role.PREFILL, roleset="one"),
        make_pod("b", Role.DECODE, roleset="one"),
        make_pod("c", Role.PREFILL, roleset="two"),
        make_pod("d", Role.DECODE, roleset="two"),
        adapters=(adapter("a"),),
    )
    pods = view.models["lora"]
    assert names(pods.prefill) == {"a"}
    assert names(pods.whole) == {"b"}


def test_an_adapter_whose_base_model_is_not_named_takes_that_of_its_pods() -> None:
    view = build(
        make_pod("a", Role.PREFILL), make_pod("b", Role.DECODE), adapters=(adapter("a", base=""),)
    )
    assert names(view.models["lora"].whole) == {"b"}


def test_an_adapter_that_moves_is_found_where_it_is_now() -> None:
    catalog = Catalog(merge_namespaces=False)
    for uid in "ab":
        catalog.put_pod(make_pod(uid))
    catalog.put_adapter("l", adapter("a"))
    assert names(catalog.build(0.0).models["lora"].whole) == {"a"}
    catalog.put_adapter("l", adapter("b"))
    assert names(catalog.build(0.0).models["lora"].whole) == {"b"}
    catalog.drop_adapter("l")
    assert catalog.build(0.0).names == ("m",)


def test_an_adapter_under_the_name_of_its_base_model_takes_nothing_away() -> None:
    view = build(
        *(make_pod(uid, Role.PREFILL) for uid in "ab"),
        make_pod("c", Role.DECODE),
        adapters=(adapter("a", name="m"),),
    )
    assert names(view.models["m"].prefill) == {"a", "b"}


def test_an_adapter_without_pods_is_not_there() -> None:
    assert build(make_pod("a"), adapters=(adapter("gone"), adapter())).names == ("m",)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from(["put", "drop"]),
        st.sampled_from(list(Role)),
        st.sampled_from("mn"),
        st.sampled_from("xy"),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)


@given(CHANGES, st.sampled_from(["", "m", "n"]), st.frozensets(st.sampled_from("abcdef")))
@settings(deadline=None)
def test_single_changes_give_the_same_view_as_all_at_once(
    changes: list[tuple[str, str, Role, str, str, bool, bool]],
    base: str,
    instances: frozenset[str],
) -> None:
    catalog = Catalog(merge_namespaces=False)
    loaded = replace(adapter(*instances, base=base), namespace="x")
    catalog.put_adapter("0", loaded)
    known: dict[str, Pod] = {}
    for uid, action, role, model, namespace, ready, look in changes:
        if action == "put":
            known.pop(uid, None)
            known[uid] = make_pod(uid, role, model=model, namespace=namespace, ready=ready)
            catalog.put_pod(known[uid])
        else:
            known.pop(uid, None)
            catalog.drop_pod(uid)
        if look:
            catalog.build(0.0)
    view = catalog.build(0.0)
    expected = build(*known.values(), adapters=(loaded,))
    assert {pod.uid: pod for pod in view.pods} == {pod.uid: pod for pod in expected.pods}
    assert {pod.uid for pod in view.pods} == known.keys()
    # Whose a name alone is depends on what has been (see the tests of names).
    for name in (name for name in view.models if "/" in name):
        assert name in expected.models
    for name, pods in expected.models.items():
        if "/" not in name:
            continue
        assert names(view.models[name].pods) == names(pods.pods)
        assert names(view.models[name].prefill) == names(pods.prefill)
        assert names(view.models[name].whole) == names(pods.whole)


def test_a_model_none_of_whose_pods_can_be_spoken_to_is_left_out_with_the_reason() -> None:
    prefill = make_pod("a", Role.PREFILL, unsupported="no such engine")
    decode = make_pod("b", Role.DECODE, unsupported="no such engine")
    other = make_pod("c", Role.OTHER)
    served = make_pod("d", model="served")
    view = build(prefill, decode, other, served)
    assert view.names == ("served",)
    assert view.left_out == {"m": "no such engine"}
    assert view.models["m"].unsupported == view.models["ns/m"].unsupported == "no such engine"
    # One pod that can be is a model that can be.
    view = build(prefill, make_pod("e", Role.DECODE, ready=False), other, served)
    assert set(view.names) == {"m", "served"}
    assert not view.left_out


def test_a_model_without_pods_is_not_said_to_be_unsupported() -> None:
    assert not build(make_pod("a", Role.OTHER)).left_out


def test_the_ranks_of_a_pod_come_and_go_with_it() -> None:
    catalog = Catalog(merge_namespaces=False)
    pod = make_pod("a")

    def put(size: int) -> bool:
        return catalog.put_ranks("a", Ranks(size=size).split(pod))

    def found() -> set[str]:
        return {pod.uid for pod in catalog.build(0.0).pods}

    assert put(3)
    assert not put(3)
    assert found() == {"a#0", "a#1", "a#2"}
    assert put(2)
    assert found() == {"a#0", "a#1"}
    assert put(1)
    assert found() == {"a"}
    assert put(2)
    catalog.drop_ranks("a")
    catalog.drop_ranks("nobody")
    assert found() == set()


def test_an_adapter_is_on_all_ranks_of_its_pods() -> None:
    catalog = Catalog(merge_namespaces=False)
    catalog.put_ranks("a", Ranks(size=2).split(make_pod("a")))
    catalog.put_ranks("b", Ranks(size=2).split(make_pod("b")))
    catalog.put_adapter("0", adapter("a"))
    assert names(catalog.build(0.0).models["lora"].whole) == {"a#0", "a#1"}


def test_a_role_of_another_name_serves_where_no_pod_is_for_one_leg() -> None:
    """As with aibrix, whose StormServices may call the role of a whole engine anything."""
    whole = build(make_pod("a", Role.OTHER), make_pod("b", Role.OTHER, ready=False))
    assert names(whole.models["m"].whole) == {"a"}
    assert {pod.role for pod in whole.pods} == {Role.BOTH}

    split = build(
        make_pod("a", Role.OTHER), make_pod("p", Role.PREFILL), make_pod("d", Role.DECODE)
    )
    assert names(split.models["m"].whole) == {"d"}
    assert build(make_pod("a", Role.OTHER), make_pod("p", Role.PREFILL)).models["m"].whole == ()

    others = build(make_pod("a", Role.OTHER), make_pod("p", Role.PREFILL, model="n"))
    assert names(others.models["m"].whole) == {"a"}


def test_what_a_role_means_follows_the_pods() -> None:
    catalog = Catalog(merge_namespaces=False)
    catalog.put_pod(make_pod("a", Role.OTHER))
    assert names(catalog.build(0.0).models["m"].whole) == {"a"}
    catalog.put_pod(make_pod("p", Role.PREFILL))
    assert catalog.build(0.0).models["m"].whole == ()
    catalog.drop_pod("p")
    assert names(catalog.build(0.0).models["m"].whole) == {"a"}
