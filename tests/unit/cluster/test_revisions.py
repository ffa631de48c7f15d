"""Pairs of one version: what tells versions apart, and what happens while they change."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from factories import MODEL, make_pod
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.kubernetes.objects import Adapter
from pdrouter.cluster.pods import TERMINATING, Claim, Pod, Role
from pdrouter.cluster.revisions import NOTHING_SEEN, ImageMemory, judge_images
from pdrouter.cluster.view import ClusterView, ModelPods, PodCache

PATIENCE_S = 600.0


def make(text: str) -> Pod:
    """A pod of a few letters: role, image (`-` unknown), state, and perhaps a number.

    `Pa` is a ready prefill pod of image `a`, `Db?` a decode pod that is not ready yet, `Pa!` one
    that terminates.
    """
    role = Role.PREFILL if text[0] == "P" else Role.DECODE
    state: dict[str, Any] = {}
    if "?" in text:
        state = {"obstacle": "not ready", "claim": Claim.HOLDS}
    if "!" in text:
        state = {"obstacle": TERMINATING, "claim": Claim.MAKES}
    return make_pod(text, role, image=text[1].replace("-", ""), **state)


def make_all(text: str) -> list[Pod]:
    return [make(each) for each in text.split()]


class Cluster:
    """A catalog that is shown one state after another."""

    def __init__(self) -> None:
        self.catalog = Catalog(merge_namespaces=False, patience_s=PATIENCE_S)
        self._known: set[str] = set()

    def show(self, pods: Iterable[Pod], now: float = 0.0) -> ModelPods:
        """Make these the pods, and return the view of the model."""
        wanted = list(pods)
        for pod in wanted:
            self.catalog.put_pod(pod)
        for uid in self._known - {pod.uid for pod in wanted}:
            self.catalog.drop_pod(uid)
        self._known = {pod.uid for pod in wanted}
        return self.catalog.build(now).models[MODEL]


def list_pairs(pods: ModelPods) -> set[str]:
    return {
        f"{prefill.name} {decode.name}"
        for prefill in pods.prefill
        for decode in pods.decode[prefill.pairing]
    }


@pytest.mark.parametrize(
    ("states", "pairs"),
    [
        pytest.param(["Pa Da"], {"Pa Da"}, id="one version"),
        pytest.param(["Pa Db"], {"Pa Db"}, id="different on purpose"),
        pytest.param(["P- D-"], {"P- D-"}, id="unknown images"),
        pytest.param(["Pa Pb Da"], {"Pa Da"}, id="new prefill pod waits"),
        pytest.param(["Pa Pb Da Db?"], {"Pa Da"}, id="until a decode pod of its own is ready"),
        pytest.param(["Pa Pb Da Db"], {"Pa Da", "Pb Db"}, id="two versions"),
        pytest.param(["Pa Da", "Pb Da"], set(), id="one role is updated first"),
        pytest.param(["Pa Da", "Pb Da", "Pb Da Db?"], set(), id="the other follows"),
        pytest.param(["Pa Da", "Pb Da", "Pb Da Db"], {"Pb Db"}, id="the other has followed"),
        pytest.param(["Pa Da", "Da", "Pb Da"], set(), id="one role is replaced at once"),
        pytest.param(["Pa Da", "Pa", "Pa Db"], set(), id="the other role is replaced at once"),
        pytest.param(["Pb Da Db?"], set(), id="begun in the midst of an update"),
        pytest.param(["Pb Pa! Da"], set(), id="begun when the last old pod ends"),
        pytest.param(["Pa Db", "Pa Db Da?"], {"Pa Db"}, id="a pod of the wrong image starts"),
        pytest.param(["Pa Db", "Pa Pc Db"], {"Pa Db", "Pc Db"}, id="different, and updated"),
        pytest.param(["Pa Db", "Pa Db Da"], {"Pa Da"}, id="different, and then the same"),
        pytest.param(["Pa? Da?", "Pa Da?"], set(), id="a start"),
        pytest.param(["Pa Da P-? D-?"], {"Pa Da"}, id="images that are pulled"),
    ],
)
def test_pairs_are_of_one_version(states: list[str], pairs: set[str]) -> None:
    cluster = Cluster()
    for state in states:
        view = cluster.show(make_all(state))
    assert list_pairs(view) == pairs


def test_roles_that_stay_apart_are_different_on_purpose_in_the_end() -> None:
    cluster = Cluster()
    cluster.show(make_all("Pa Da"))
    apart = make_all("Pb Da")
    assert not list_pairs(cluster.show(apart, 100.0))
    # An update that goes on for long is one all the same.
    assert not list_pairs(cluster.show(make_all("Pb Da Db?"), 100.0 + PATIENCE_S))
    assert not list_pairs(cluster.show(apart, 2000.0))
    assert cluster.catalog.find_next_change(2100.0) == PATIENCE_S - 100.0
    assert not list_pairs(cluster.catalog.build(2000.0 + PATIENCE_S - 1).models[MODEL])
    # Nothing has changed but the time.
    view = cluster.catalog.build(2000.0 + PATIENCE_S).models[MODEL]
    assert list_pairs(view) == {"Pb Da"}
    assert cluster.catalog.find_next_change(9999.0) is None


def test_one_that_is_replaced_by_another_of_its_image_is_nothing_new() -> None:
    cluster = Cluster()
    cluster.show(make_all("Pa Da"))
    cluster.show(make_all("Pb Da"))
    # The memory outlives the pods that it is of, as long as there are others of the model.
    cluster.show(make_all("Da"))
    assert not list_pairs(cluster.show(make_all("Pb Da2")))
    assert list_pairs(cluster.show(make_all("Pb Db Da2"))) == {"Pb Db"}


def test_what_pods_say_themselves_counts_more_than_their_images() -> None:
    def label(text: str, revision: str, image: str = "same") -> Pod:
        role = Role.PREFILL if text[0] == "P" else Role.DECODE
        return make_pod(text, role, revision=revision, image=image)

    cluster = Cluster()
    one = [label("P1", "one", "a"), label("D1", "one", "b")]
    two = [label("P2", "two"), label("D2", "two")]
    assert list_pairs(cluster.show(one)) == {"P1 D1"}
    assert list_pairs(cluster.show(one + two)) == {"P1 D1", "P2 D2"}
    view = cluster.show([one[0], two[1]])
    assert not list_pairs(view)
    assert {pod.name for pod in view.unmatched} == {"P1", "D2"}
    # Those that say none are of another one, whatever their images.
    assert not list_pairs(cluster.show([one[0], make_pod("D", Role.DECODE, image="a")]))


def test_each_roleset_has_versions_of_its_own() -> None:
    pods = [
        make_pod("P1", roleset="same", image="a"),
        make_pod("D1", Role.DECODE, roleset="same", image="a"),
        make_pod("P2", roleset="differ", image="a"),
        make_pod("D2", Role.DECODE, roleset="differ", image="b"),
    ]
    assert list_pairs(Cluster().show(pods)) == {"P1 D1", "P2 D2"}


def test_a_ready_pod_without_a_partner_of_its_version_is_known() -> None:
    cluster = Cluster()
    assert not cluster.show(make_all("Pa Da Db?")).unmatched
    view = cluster.show(make_all("Pa Pb Da"))
    assert [pod.name for pod in view.unmatched] == ["Pb"]
    # Where the whole role is missing, it is not the version.
    assert not cluster.show(make_all("Pa Pb")).unmatched


def test_it_is_logged_when_pods_begin_to_wait_for_a_partner_and_when_they_have_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    old = [make_pod("p", revision="1"), make_pod("d", Role.DECODE, revision="1")]
    new = [make_pod(f"p{number}", revision="2") for number in range(3)]
    cache = PodCache()
    for pods in (old, old + new[:2], old + new, [*old, make_pod("d2", Role.DECODE, revision="2")]):
        cache.replace(pods)
    cache.replace(old)
    said = [(record.getMessage(), vars(record)["fields"]) for record in caplog.records]
    place = {"namespace": "default", "model": MODEL, "roleset": ""}
    prefill = {**place, "role": "prefill", "revision": "2"}
    decode = {**place, "role": "decode", "revision": "2"}
    waits, over = (
        "pods wait for a partner of their revision",
        "no pods wait for a partner of this revision any more",
    )
    assert said == [
        (waits, {**prefill, "pods": 2}),
        (waits, {**decode, "pods": 1}),
        (over, prefill),
        (over, decode),
    ]


def test_pods_of_any_version_serve_requests_whole() -> None:
    cluster = Cluster()
    cluster.show(make_all("Pa Da"))
    assert [pod.name for pod in cluster.show(make_all("Pb Da")).whole] == ["Da"]


def test_an_adapter_is_decoded_by_pods_of_the_version_that_has_loaded_it() -> None:
    cluster = Cluster()
    adapter = Adapter("default", "lora", MODEL, frozenset({"Pa", "Pb"}))
    cluster.catalog.put_adapter("0", adapter)
    cluster.show(make_all("Pa Pb Da Db"))
    loaded = cluster.catalog.build(0.0).models["lora"]
    assert list_pairs(loaded) == {"Pa Da", "Pb Db"}
    cluster.show(make_all("Pa Pb Da"))
    assert list_pairs(cluster.catalog.build(0.0).models["lora"]) == {"Pa Da"}


def test_pods_that_can_never_serve_tell_nothing() -> None:
    broken = make_pod("Da", Role.DECODE, image="a", obstacle="failed", claim=Claim.NONE)
    assert judge_images(NOTHING_SEEN, [make("Pa"), broken], 0.0, 1.0) == ImageMemory()


def test_pods_that_stay_as_they_are_are_not_copied_again() -> None:
    cluster = Cluster()
    before = cluster.show(make_all("Pa Da"))
    after = cluster.show([*before.pods, make("Pb?")])
    again = Cluster().show(make_all("Pa Da"))
    assert after.prefill[0] == again.prefill[0]
    pods = make_all("Pa Da")
    cluster.show(pods)
    assert cluster.show([*pods, make("Pb?")]).prefill[0] is cluster.show(pods).prefill[0]


PODS = st.lists(
    st.builds(
        lambda number, role, image, state: make(f"{role}{image}{state}{number}"),
        st.integers(1, 3),
        st.sampled_from("PD"),
        st.sampled_from("abc-"),
        st.sampled_from(["", "", "?", "!"]),
    ),
    max_size=8,
    unique_by=lambda pod: pod.uid,
)


def find_covered(pods: Iterable[Pod]) -> set[str]:
    """The images that ready pods of both roles have."""
    ready = {role: {pod.image for pod in pods if pod.ready and pod.role is role} for role in Role}
    return (ready[Role.PREFILL] & ready[Role.DECODE]) - {""}


@given(st.lists(PODS, min_size=1, max_size=6))
@settings(deadline=None)
def test_once_both_roles_had_an_image_versions_are_never_mixed_and_never_starve(
    history: list[list[Pod]],
) -> None:
    cluster = Cluster()
    other = make_pod("other", Role.BOTH)
    versions = False
    for pods in history:
        view = cluster.show([*pods, other])
        covered = find_covered(pods)
        # A roleset that has lost all of its pods begins anew.
        versions = bool(covered) or (versions and bool(pods))
        pairs = [(p, d) for p in view.prefill for d in view.decode[p.pairing]]
        if versions:
            assert all(prefill.image == decode.image for prefill, decode in pairs)
        assert covered <= {prefill.image for prefill, _ in pairs}


@given(PODS)
def test_without_images_all_ready_pods_are_pairs(pods: list[Pod]) -> None:
    without = [make_pod(pod.name, pod.role, ready=pod.ready, obstacle=pod.obstacle) for pod in pods]
    view = ClusterView.build(without).models.get(MODEL)
    ready = {role: {pod.name for pod in without if pod.ready and pod.role is role} for role in Role}
    expected = {f"{p} {d}" for p, d in product(ready[Role.PREFILL], ready[Role.DECODE])}
    assert (list_pairs(view) if view else set()) == expected
    shown = Cluster().show([*without, make_pod("other", Role.BOTH)])
    assert list_pairs(shown) == expected
