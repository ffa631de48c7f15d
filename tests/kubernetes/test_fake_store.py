"""Versions, identities and ends of the objects in the fake server's store."""

from collections.abc import Callable
from typing import Any

import pytest
from fakekube import ApiError, make_pod
from fakekube.kinds import Kinds
from fakekube.objects import Change
from fakekube.store import Store

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}


class Timers:
    """Delays that a test lets pass."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, function: Callable[[], None], /) -> None:
        self.waiting.append((delay, function))

    def pass_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for _, function in waiting:
            function()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def store(timers: Timers) -> Store:
    return Store(Kinds(), timers)


@pytest.fixture
def changes(store: Store) -> list[Change]:
    seen: list[Change] = []
    store.observe(seen.append)
    return seen


def version(manifest: dict[str, Any]) -> int:
    return int(manifest["metadata"]["resourceVersion"])


def test_every_write_of_any_kind_gets_the_next_version(store: Store) -> None:
    pod = store.create(make_pod())
    config_map = store.create(CONFIG_MAP)
    patched = store.patch("pods", "pod-0", {"metadata": {"labels": {"a": "b"}}})
    gone = store.delete("configmaps", "c")
    assert [version(pod) + n for n in range(4)] == [
        version(manifest) for manifest in (pod, config_map, patched, gone)
    ]
    assert store.resource_version == version(gone)


def test_a_write_that_changes_nothing_makes_no_version(store: Store, changes: list[Change]) -> None:
    pod = store.create(make_pod(labels={"a": "b"}))
    assert store.patch("pods", "pod-0", {"metadata": {"labels": {"a": "b"}}}) == pod
    assert store.replace(pod) == pod
    assert len(changes) == 1


def test_what_goes_in_and_comes_out_is_the_callers_own(store: Store) -> None:
    manifest = make_pod(labels={"a": "b"})
    created = store.create(manifest)
    assert "uid" not in manifest["metadata"]
    manifest["metadata"]["labels"]["a"] = created["metadata"]["labels"]["a"] = "changed"
    assert store.get("pods", "pod-0")["metadata"]["labels"] == {"a": "b"}


def test_a_name_is_taken_once_for_each_namespace_and_each_life_has_its_own_uid(
    store: Store,
) -> None:
    first = store.create(make_pod())
    with pytest.raises(ApiError, match='pods "pod-0" already exists') as refused:
        store.create(make_pod())
    assert (refused.value.code, refused.value.status["reason"]) == (409, "AlreadyExists")
    elsewhere = store.create(make_pod(namespace="other"))
    store.delete("pods", "pod-0", grace=0)
    second = store.create(make_pod())
    assert len({pod["metadata"]["uid"] for pod in (first, elsewhere, second)}) == 3


def test_only_a_changed_spec_raises_the_generation(store: Store) -> None:
    store.create(make_pod())
    labelled = store.patch("pods", "pod-0", {"metadata": {"labels": {"a": "b"}}})
    moved = store.patch("pods", "pod-0", {"spec": {"nodeName": "node-1"}})
    assert [pod["metadata"]["generation"] for pod in (labelled, moved)] == [1, 2]


@pytest.mark.parametrize("basis", [{"resourceVersion": "1"}, {"uid": "another"}])
def test_a_write_based_on_another_state_is_a_conflict(store: Store, basis: dict[str, str]) -> None:
    pod = store.create(make_pod())
    with pytest.raises(ApiError) as refused:
        store.replace({**pod, "metadata": {**pod["metadata"], **basis}})
    assert (refused.value.code, refused.value.status["reason"]) == (409, "Conflict")


def test_the_server_owns_identity_and_deletion_of_an_object(store: Store) -> None:
    pod = store.create(make_pod())
    owned = {"creationTimestamp": "2000-01-01T00:00:00Z", "deletionTimestamp": "x", "generation": 9}
    assert store.patch("pods", "pod-0", {"metadata": owned}) == pod


def test_a_running_pod_ends_gracefully(store: Store, timers: Timers, changes: list[Change]) -> None:
    store.create(make_pod())
    terminating = store.delete("pods", "pod-0")["metadata"]
    assert terminating["deletionTimestamp"] > terminating["creationTimestamp"]
    assert terminating["deletionGracePeriodSeconds"] == 30
    [(delay, _)] = timers.waiting
    assert delay == 30
    timers.pass_all()
    assert [change.type for change in changes] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
    last = changes[-1].stored.decode()
    ready = [c["status"] for c in last["status"]["conditions"] if c["type"] == "Ready"]
    assert ready == ["False"]


def test_a_shorter_grace_period_replaces_a_longer_one(store: Store) -> None:
    store.create(make_pod())
    store.delete("pods", "pod-0", grace=20)
    assert store.delete("pods", "pod-0")["metadata"]["deletionGracePeriodSeconds"] == 20
    assert store.delete("pods", "pod-0", grace=5)["metadata"]["deletionGracePeriodSeconds"] == 5
    store.delete("pods", "pod-0", grace=0)
    assert store.objects("pods") == []


def test_the_end_of_a_deletion_does_not_hit_the_next_pod_of_that_name(
    store: Store, timers: Timers
) -> None:
    store.create(make_pod())
    store.delete("pods", "pod-0")
    store.finish_deletion("pods", "pod-0")
    successor = store.create(make_pod())
    timers.pass_all()
    assert store.get("pods", "pod-0") == successor


@pytest.mark.parametrize("pod", [make_pod(node=""), make_pod(phase="Succeeded")])
def test_a_pod_without_running_containers_ends_at_once(store: Store, pod: dict[str, Any]) -> None:
    store.create(pod)
    store.delete("pods", "pod-0")
    assert store.objects("pods") == []


def test_a_finalizer_holds_an_object_until_it_is_taken_off(store: Store) -> None:
    store.create({**CONFIG_MAP, "metadata": {"name": "c", "finalizers": ["a/b"]}})
    store.delete("configmaps", "c")
    assert "deletionTimestamp" in store.get("configmaps", "c")["metadata"]
    store.patch("configmaps", "c", {"metadata": {"finalizers": None}})
    assert store.objects("configmaps") == []


def test_a_namespace_takes_its_objects_along(store: Store) -> None:
    store.create(make_pod(namespace="team"))
    store.create(make_pod())
    store.delete("namespaces", "team")
    assert [pod["metadata"]["namespace"] for pod in store.objects("pods")] == ["default"]


def test_an_earlier_state_can_be_read_until_it_is_compacted(store: Store) -> None:
    store.create(make_pod("a", labels={"n": "1"}))
    then = store.resource_version
    store.create(make_pod("b"))
    store.patch("pods", "a", {"metadata": {"labels": {"n": "2"}}})
    store.delete("pods", "a", grace=0)
    kind = store.kinds.of_plural("pods")
    [earlier] = store.select(kind, at=then)
    assert (earlier.key, earlier.labels) == (("default", "a"), {"n": "1"})
    store.compact()
    with pytest.raises(ApiError) as refused:
        store.select(kind, at=then)
    assert refused.value.code == 410


def test_a_restored_backup_has_the_old_objects_and_counts_on_from_the_old_version(
    store: Store,
) -> None:
    kept = store.create(make_pod("a"))
    then = store.resource_version
    store.delete("pods", "a", grace=0)
    store.create(make_pod("b"))
    store.roll_back(then)
    assert store.objects("pods") == [kept]
    assert version(store.create(make_pod("c"))) == then + 1


def test_an_observer_that_writes_is_told_in_the_order_of_the_writes(store: Store) -> None:
    told: list[int] = []

    def copy_labels(change: Change) -> None:
        if change.type == "ADDED" and change.stored.kind.name == "Pod":
            store.create({**CONFIG_MAP, "metadata": {"name": change.stored.key[1]}})

    store.observe(copy_labels)
    store.observe(lambda change: told.append(change.resource_version))
    store.create(make_pod("a"))
    store.create(make_pod("b"))
    assert len(told) == 4
    assert told == sorted(told)


def test_a_pod_with_field_ownership_is_as_large_as_real_ones(store: Store) -> None:
    store.create(make_pod(labels={"role-name": "prefill"}, managed_fields=True))
    [stored] = store.select(store.kinds.of_plural("pods"))
    assert 6_500 < len(stored.body) < 9_000


def test_a_pod_may_have_two_addresses_or_be_terminating_already(store: Store) -> None:
    addresses = ("10.0.0.1", "fd00::1")
    since = "2026-01-01T00:00:00Z"
    pod = store.create(make_pod(ips=addresses, uid="u", deletion_timestamp=since))
    assert pod["status"]["podIPs"] == [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]
    assert (pod["metadata"]["uid"], pod["metadata"]["deletionTimestamp"]) == ("u", since)


def test_a_pod_without_network_has_no_address(store: Store) -> None:
    status = store.create(make_pod(ip=None, ready=False, phase="Pending"))["status"]
    assert "podIP" not in status
    assert status["phase"] == "Pending"
