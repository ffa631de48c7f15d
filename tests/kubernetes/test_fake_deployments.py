"""What the fake server's controller makes of Deployments."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from fakekube import DeploymentController, FakeApiServer
from fakekube.kinds import Kinds
from fakekube.pods import pod_status
from fakekube.store import Store

Json = dict[str, Any]


def deployment(replicas: int = 2, image: str = "engine:1") -> Json:
    labels = {"role-name": "decode", "model.aibrix.ai/name": "llama"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "decode", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"role-name": "decode"}},
            "template": {
                "metadata": {"labels": labels, "annotations": {"model.aibrix.ai/port": "8000"}},
                "spec": {"containers": [{"name": "vllm", "image": image}]},
            },
        },
    }


@pytest.fixture
def store() -> Store:
    return Store(Kinds())


@pytest.fixture
def controller(store: Store) -> DeploymentController:
    return DeploymentController(store, allocator())


def allocator() -> Callable[[Json], str]:
    numbers = itertools.count(1)
    return lambda _: f"10.0.0.{next(numbers)}"


def living(store: Store) -> list[Json]:
    return [p for p in store.objects("pods") if "deletionTimestamp" not in p["metadata"]]


def test_pods_follow_from_the_template(store: Store, controller: DeploymentController) -> None:
    store.create(deployment())
    controller.sync_all()
    first, second = living(store)
    assert {pod["status"]["podIP"] for pod in (first, second)} == {"10.0.0.1", "10.0.0.2"}
    assert first["metadata"]["name"] != second["metadata"]["name"]
    assert first["metadata"]["labels"]["model.aibrix.ai/name"] == "llama"
    assert first["metadata"]["annotations"] == {"model.aibrix.ai/port": "8000"}
    [replica_set] = store.objects("replicasets")
    digest = first["metadata"]["labels"]["pod-template-hash"]
    assert replica_set["metadata"]["name"] == f"decode-{digest}"
    [owner] = first["metadata"]["ownerReferences"]
    assert owner["uid"] == replica_set["metadata"]["uid"]
    assert first["status"]["phase"] == "Running"


def test_the_status_says_that_the_deployment_is_available(
    store: Store, controller: DeploymentController
) -> None:
    store.create(deployment(replicas=3))
    controller.sync_all()
    status = store.get("deployments", "decode")["status"]
    assert (status["readyReplicas"], status["availableReplicas"]) == (3, 3)
    assert (status["observedGeneration"], status["unavailableReplicas"]) == (1, 0)
    assert {c["type"]: c["status"] for c in status["conditions"]}["Available"] == "True"


def test_a_pod_that_is_not_ready_is_not_available(
    store: Store, controller: DeploymentController
) -> None:
    store.create(deployment())
    controller.sync_all()
    name = living(store)[0]["metadata"]["name"]
    store.patch("pods", name, {"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    controller.sync_all()
    status = store.get("deployments", "decode")["status"]
    assert (status["readyReplicas"], status["unavailableReplicas"]) == (1, 1)


@pytest.mark.parametrize("replicas", [0, 1, 5])
def test_the_number_of_pods_follows_the_replicas(
    store: Store, controller: DeploymentController, replicas: int
) -> None:
    store.create(deployment())
    controller.sync_all()
    store.patch("deployments", "decode", {"spec": {"replicas": replicas}})
    controller.sync_all()
    assert len(living(store)) == replicas


def test_another_template_replaces_all_pods(store: Store, controller: DeploymentController) -> None:
    store.create(deployment())
    controller.sync_all()
    old = {pod["metadata"]["uid"] for pod in living(store)}
    store.patch("deployments", "decode", {"spec": deployment(image="engine:2")["spec"]})
    controller.sync_all()
    assert [pod["spec"]["containers"][0]["image"] for pod in living(store)] == ["engine:2"] * 2
    assert old.isdisjoint(pod["metadata"]["uid"] for pod in living(store))


def set_ready(store: Store, pod: Json) -> None:
    status = pod_status(pod["spec"]["containers"], pod["status"]["podIP"])
    store.patch("pods", pod["metadata"]["name"], {"status": status})


def test_another_template_rolls_by_a_quarter(store: Store) -> None:
    controller = DeploymentController(store, allocator(), rolling=True)
    store.create(deployment(replicas=4))
    controller.sync_all()
    for pod in living(store):
        assert pod["status"]["phase"] == "Pending"
        set_ready(store, pod)
    store.patch("deployments", "decode", {"spec": deployment(4, "engine:2")["spec"]})
    steps: list[tuple[int, int, int]] = []
    while not steps or steps[-1] != (0, 4, 0):
        controller.sync_all()
        pods = living(store)
        new = [pod for pod in pods if pod["spec"]["containers"][0]["image"] == "engine:2"]
        waiting = [pod for pod in new if pod["status"]["phase"] == "Pending"]
        steps.append((len(pods) - len(new), len(new), len(waiting)))
        assert len(pods) <= 5
        assert len(pods) - len(waiting) >= 3
        for pod in waiting[:1]:
            set_ready(store, pod)
    assert steps[:3] == [(3, 2, 2), (2, 3, 2), (1, 4, 2)]


def test_nothing_is_left_of_a_deleted_deployment(
    store: Store, controller: DeploymentController
) -> None:
    store.create(deployment())
    controller.sync_all()
    store.delete("deployments", "decode")
    controller.sync_all()
    assert (living(store), store.objects("replicasets")) == ([], [])


def test_a_second_look_changes_nothing(store: Store, controller: DeploymentController) -> None:
    store.create(deployment())
    controller.sync_all()
    version = store.resource_version
    controller.sync_all()
    assert store.resource_version == version


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(termination_delay=0) as running:
        yield running


async def test_a_running_controller_replaces_pods_that_are_gone(api: FakeApiServer) -> None:
    api.run_deployments(allocator())
    api.store.create(deployment())
    await settle(api)
    before = {pod["metadata"]["name"] for pod in living(api.store)}
    assert len(before) == 2
    api.store.delete("pods", min(before), grace=0)
    await settle(api)
    after = {pod["metadata"]["name"] for pod in living(api.store)}
    assert len(after) == 2
    assert len(after & before) == 1


async def settle(api: FakeApiServer) -> None:
    """Wait until nothing more is written."""
    version = -1
    while version != api.store.resource_version:
        version = api.store.resource_version
        await asyncio.sleep(0.01)
