"""Which routers there are, by what an operator says."""

from typing import Any

import pytest

from pdrouter.cluster import router_group
from pdrouter.cluster.router_group import RouterGroup, form_group
from pdrouter.settings import SettingInvalid, Settings


def form(host: str, monkeypatch: pytest.MonkeyPatch, **given: Any) -> RouterGroup:
    monkeypatch.setattr(router_group, "gethostname", lambda: host)
    return form_group(Settings(**given))


def test_one_router_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form("any", monkeypatch).members == {"any"}


def test_the_workers_of_a_replica_are_one_router(monkeypatch: pytest.MonkeyPatch) -> None:
    group = form("any-7", monkeypatch, workers=2)
    assert (group.own, set(group.members)) == ("any-7", {"any-7"})


@pytest.mark.parametrize(
    ("host", "given"), [("pdrouter-1", {}), ("other", {"replica": 1}), ("x-0", {"replica": 1})]
)
def test_a_replica_is_told_which_it_is(
    host: str, given: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = form(host, monkeypatch, replicas=3, **given)
    assert (group.own, set(group.members)) == ("1", {"0", "1", "2"})


def test_a_pod_goes_by_the_name_that_its_manifest_gives_not_by_its_hosts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert form("node-7", monkeypatch, own_name="pdrouter-6d5f-x2").own == "pdrouter-6d5f-x2"
    assert form("node-7", monkeypatch, replicas=3, own_name="pdrouter-2").own == "2"


def test_a_router_of_which_its_service_does_not_know_is_not_one_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes by another name there, and would part the pods with itself."""
    group = form("node-7", monkeypatch, workers=2)
    group.take_replicas(["r-1", "r-2"], starting=["r-3"])
    assert group.members == {"node-7"}
    group.take_replicas(["r-1"], starting=["node-7"])
    assert group.members == {"node-7", "r-1"}


def test_an_event_that_changes_nothing_leaves_the_members_the_same() -> None:
    group = RouterGroup("r-0", replicas=("r-0", "r-1"))
    members = group.members
    group.take_replicas(["r-1"], starting=["r-0"])
    assert group.members is members
    group.take_replicas(["r-0"], starting=["r-1"])
    assert group.members == {"r-0"}


@pytest.mark.parametrize(
    ("host", "given"),
    [
        ("pdrouter", {}),
        ("pdrouter-3", {}),
        ("pdrouter-6d5f-x2", {}),
        ("pdrouter-1", {"replica": 3}),
    ],
)
def test_a_replica_that_does_not_know_which_it_is_does_not_start(
    host: str, given: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingInvalid, match="PDROUTER_REPLICA must say which"):
        form(host, monkeypatch, replicas=3, **given)
