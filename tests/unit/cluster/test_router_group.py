"""Which routers there are, by what an operator says."""

from typing import Any

import pytest

from pdrouter.cluster import router_group
from pdrouter.cluster.router_group import RouterGroup, form_group
from pdrouter.settings import SettingInvalid, Settings


def form(host: str, monkeypatch: pytest.MonkeyPatch, worker: int = 0, **given: Any) -> RouterGroup:
    monkeypatch.setattr(router_group, "gethostname", lambda: host)
    return form_group(Settings(**given), worker)


def test_one_router_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert form("any", monkeypatch).members == {"any/0"}


def test_workers_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    group = form("any-7", monkeypatch, 1, workers=2)
    assert (group.own, set(group.members)) == ("any-7/1", {"any-7/0", "any-7/1"})


@pytest.mark.parametrize(
    ("host", "given"), [("pdrouter-1", {}), ("other", {"replica": 1}), ("x-0", {"replica": 1})]
)
def test_a_replica_is_told_which_it_is(
    host: str, given: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = form(host, monkeypatch, replicas=3, **given)
    assert (group.own, set(group.members)) == ("1/0", {"0/0", "1/0", "2/0"})


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
