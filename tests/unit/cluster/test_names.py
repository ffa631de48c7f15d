"""Whose pods a name stands for, where several namespaces share a router."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.kubernetes.objects import Adapter
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.names import LINGER_S
from pdrouter.cluster.pods import Claim, Pod, Role
from pdrouter.cluster.view import ClusterView
from pdrouter.settings.kinds import MODEL_NAMESPACES


def make_pod(namespace: str, model: str = "m", *, ready: bool = True, number: int = 0) -> Pod:
    return Pod.create(
        uid=f"{namespace}-{model}-{number}",
        name=f"pod-{number}",
        ip="10.0.0.1",
        port=8000,
        model=model,
        role=Role.BOTH,
        namespace=namespace,
        ready=ready,
    )


def build(
    *pods: Pod, namespaces: tuple[str, ...] = (), merge_namespaces: bool = False
) -> ClusterView:
    catalog = Catalog(merge_namespaces=merge_namespaces, namespaces=namespaces)
    for pod in pods:
        catalog.put_pod(pod)
    return catalog.build(0.0)


def homes(view: ClusterView, name: str) -> set[str]:
    """The namespaces of the pods that a name stands for."""
    pods = view.models.get(name)
    return {pod.namespace for pod in pods.pods} if pods else set()


class TestQualifiedNames:
    """`namespace/name` is the namespace's own."""

    @pytest.mark.parametrize("order", [1, -1])
    def test_another_namespaces_pod_does_not_take_one(self, order: int) -> None:
        pods = [make_pod("prod"), make_pod("evil", "prod/m")]
        view = build(*pods[::order])
        assert homes(view, "prod/m") == {"prod"}
        assert homes(view, "evil/prod/m") == {"evil"}
        assert set(view.names) == {"m", "evil/prod/m"}

    def test_one_that_is_not_ready_is_not_taken_either(self) -> None:
        view = build(make_pod("prod", ready=False), make_pod("evil", "prod/m"))
        assert homes(view, "prod/m") == {"prod"}
        assert view.models["prod/m"].whole == ()

    @pytest.mark.parametrize("told", [True, False])
    def test_one_without_pods_is_nobodys(self, *, told: bool) -> None:
        catalog = Catalog(merge_namespaces=False)
        if told:
            catalog.put_namespace("prod")
        else:
            pod = make_pod("prod", "other")
            catalog.put_pod(pod)
            catalog.drop_pod(pod.uid)
        catalog.put_pod(make_pod("evil", "prod/m"))
        view = catalog.build(0.0)
        assert "prod/m" not in view.models
        assert view.names == ("evil/prod/m",)

    def test_a_namespace_may_call_a_model_by_its_own_name_in_full(self) -> None:
        view = build(make_pod("prod", "prod/m"))
        assert homes(view, "prod/m") == {"prod"}
        view = build(make_pod("prod", "prod/m"), make_pod("prod", "m"))
        assert view.models["prod/m"].model == "m"
        assert view.models["prod/prod/m"].model == "prod/m"
        assert set(view.names) == {"m", "prod/prod/m"}

    def test_a_slash_alone_makes_no_namespace(self) -> None:
        view = build(make_pod("prod", "meta-llama/Llama-3.1-8B"), namespaces=("prod", "other"))
        assert view.names == ("meta-llama/Llama-3.1-8B",)
        assert homes(view, "prod/meta-llama/Llama-3.1-8B") == {"prod"}

    def test_an_adapter_cannot_reach_into_another_namespace(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        catalog.put_pod(make_pod("prod"))
        catalog.put_adapter("l", Adapter("evil", "lora", "m", frozenset({"pod-0"})))
        assert catalog.build(0.0).names == ("m",)


class TestClaims:
    """A name alone is that of the namespaces whose pods have been ready."""

    def test_a_pod_that_was_never_ready_does_not_make_a_name_ambiguous(self) -> None:
        view = build(make_pod("prod"), make_pod("evil", ready=False))
        assert view.ambiguous == {}
        assert homes(view, "m") == {"prod"}
        assert homes(view, "evil/m") == {"evil"}

    def test_nor_does_one_that_cannot_serve(self) -> None:
        broken = replace(make_pod("evil", ready=False), claim=Claim.NONE)
        view = build(make_pod("prod", ready=False), broken)
        assert view.ambiguous == {}
        assert view.models["m"].whole == ()

    def test_pods_that_are_not_ready_now_keep_their_name(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        catalog.put_pod(make_pod("prod"))
        catalog.build(0.0)
        catalog.put_pod(make_pod("prod", ready=False))
        assert homes(catalog.build(1.0), "m") == {"prod"}
        catalog.put_pod(make_pod("evil"))
        # Requests for `m` must not go to whoever comes in between.
        assert catalog.build(2.0).ambiguous == {"m": ("evil/m", "prod/m")}

    def test_pods_that_were_ready_before_the_router_knew_them_have_theirs(self) -> None:
        before = replace(make_pod("prod", ready=False), claim=Claim.MAKES)
        assert build(before, make_pod("evil")).ambiguous == {"m": ("evil/m", "prod/m")}

    def test_a_name_outlives_the_pods_between_two_generations(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        old, new = make_pod("prod"), make_pod("prod", ready=False, number=1)
        catalog.put_pod(old)
        catalog.build(0.0)
        catalog.put_pod(make_pod("evil", ready=False))
        catalog.drop_pod(old.uid)
        catalog.build(1.0)
        catalog.put_pod(make_pod("evil"))
        assert catalog.build(2.0).ambiguous == {"m": ("evil/m", "prod/m")}
        catalog.put_pod(new)
        assert set(catalog.build(LINGER_S * 9).ambiguous) == {"m"}

    def test_a_name_whose_pods_have_gone_for_good_is_free(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        old = make_pod("prod")
        catalog.put_pod(old)
        catalog.put_pod(make_pod("next"))
        assert catalog.build(0.0).ambiguous
        assert catalog.find_next_change(0.0) is None
        catalog.drop_pod(old.uid)
        view = catalog.build(1.0)
        assert view.ambiguous
        assert view.names == ("next/m",)
        assert catalog.find_next_change(2.0) == LINGER_S - 1.0
        assert homes(catalog.build(1.0 + LINGER_S), "m") == {"next"}
        assert catalog.find_next_change(1.0 + LINGER_S) is None

    def test_where_nobody_was_ready_yet_the_model_is_known_all_the_same(self) -> None:
        view = build(make_pod("x", ready=False), make_pod("y", ready=False))
        assert view.ambiguous == {}
        assert view.names == ("m",)
        assert view.models["m"].whole == ()

    def test_a_merged_model_has_no_part_of_those_that_cannot_serve(self) -> None:
        pods = (make_pod("x"), make_pod("y"), make_pod("z", ready=False))
        assert homes(build(*pods, merge_namespaces=True), "m") == {"x", "y"}


class TestRefusedPods:
    def test_they_are_seen_and_have_no_name(self) -> None:
        refused = replace(make_pod("evil", ready=False), refused=True, obstacle="because")
        view = build(refused)
        assert view.pods == (refused,)
        assert view.models == {}
        assert refused.state == "refused"

    def test_one_that_is_good_again_is_used(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        pod = make_pod("prod")
        for state, models in ((replace(pod, refused=True), set()), (pod, {"m", "prod/m"})):
            catalog.put_pod(state)
            assert set(catalog.build(0.0).models) == models
        catalog.put_pod(replace(pod, refused=True))
        assert set(catalog.build(0.0).models) == set()

    def test_an_adapter_is_not_served_by_them(self) -> None:
        catalog = Catalog(merge_namespaces=False)
        catalog.put_pod(replace(make_pod("ns", ready=False), refused=True))
        catalog.put_adapter("l", Adapter("ns", "lora", "m", frozenset({"pod-0"})))
        assert catalog.build(0.0).models == {}


class TestModelNamespaces:
    @pytest.mark.parametrize(
        ("namespace", "model", "allowed"),
        [
            ("prod", "m", True),
            ("evil", "m", False),
            ("a", "demo-1", True),
            ("b", "demo-", True),
            ("prod", "demo-1", False),
            ("anywhere", "free", True),
            ("lab", "other", True),
            ("prod", "other", False),
            ("prod", "M", False),
            ("x", "a-long-middle-z", True),
            ("prod", "a-long-middle-z", False),
            ("x", "a-middle", False),
            ("prod", "x=y", True),
        ],
    )
    def test_the_first_rule_that_fits_decides(
        self, namespace: str, model: str, *, allowed: bool
    ) -> None:
        rules = "m=prod; demo-*=a,b; free=*; a*middle*z=x; x=y=prod; *=lab"
        assert ModelNamespaces(MODEL_NAMESPACES.parse(rules)).allow(namespace, model) is allowed

    def test_what_no_rule_fits_is_anybodys(self) -> None:
        rules = ModelNamespaces(MODEL_NAMESPACES.parse("m=prod"))
        assert rules.allow("evil", "n")
        assert not rules.allow("evil", "m")
        assert ModelNamespaces().allow("evil", "m")

    @pytest.mark.parametrize(
        "text", ["m", "=x", "m=", "m=a;m=b", "m=Up", "m=a/b", ";", "m=a b", "m=-a", "m=" + "a" * 64]
    )
    def test_what_cannot_be_meant_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            MODEL_NAMESPACES.parse(text)

    def test_an_adapter_of_another_namespace_is_not_served(self) -> None:
        catalog = Catalog(
            merge_namespaces=False, model_namespaces=ModelNamespaces((("lora", ("prod",)),))
        )
        catalog.put_pod(make_pod("evil"))
        catalog.put_adapter("l", Adapter("evil", "lora", "m", frozenset({"pod-0"})))
        assert set(catalog.build(0.0).models) == {"m", "evil/m"}

    @given(st.lists(st.sampled_from(["", "a", "ab", "b"]), min_size=1), st.text("ab", max_size=8))
    def test_stars_mean_what_they_mean_to_a_shell(self, parts: list[str], model: str) -> None:
        from fnmatch import fnmatchcase  # noqa: PLC0415 - the judge of this test alone

        pattern = "*".join(parts)
        rules = ModelNamespaces(((pattern, ("ns",)),))
        assert rules.allow("other", model) is not fnmatchcase(model, pattern)


NAMES = ("m", "n", "x/m", "y/m", "z/n", "hf/m")
CHANGES = st.lists(
    st.tuples(
        st.sampled_from("xyz"),
        st.sampled_from(NAMES),
        st.sampled_from(["ready", "unready", "gone"]),
        st.floats(0, LINGER_S),
    ),
    max_size=30,
)


@given(CHANGES)
@settings(deadline=None)
def test_no_name_ever_stands_for_pods_that_it_should_not(
    changes: list[tuple[str, str, str, float]],
) -> None:
    catalog = Catalog(merge_namespaces=False)
    now = 0.0
    for namespace, model, state, passed in changes:
        now += passed
        pod = make_pod(namespace, model, ready=state == "ready")
        if state == "gone":
            catalog.drop_pod(pod.uid)
        else:
            catalog.put_pod(pod)
        view = catalog.build(now)
        known = {pod.namespace for pod in view.pods}
        for name, pods in view.models.items():
            owner, slash, _ = name.partition("/")
            if slash and owner in known:
                assert {pod.namespace for pod in pods.pods} == {owner}
            # Pods of several namespaces are never mixed where one of them could serve.
            assert len({pod.namespace for pod in pods.whole}) <= 1
        # Each pod that is ready can be asked for, if only in full.
        for ready in (pod for pod in view.pods if pod.ready):
            full = view.models[f"{ready.namespace}/{ready.model}"]
            assert ready in full.pods or full.model != ready.model
        assert not set(view.ambiguous) & set(view.models)
        assert set(view.names) <= set(view.models)
