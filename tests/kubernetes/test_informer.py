"""What the informer makes of a cluster's pods, on the fake API server and on real ones."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from fakekube import ApiError, FakeApiServer, make_pod
from informers import run_informer, wait_for
from kubernetes_asyncio import client, config

MODEL = {"model.aibrix.ai/name": "m"}
PREFILL = MODEL | {"role-name": "prefill"}
DECODE = MODEL | {"role-name": "decode"}
READY = [{"type": "Ready", "status": "True"}]
UNREADY = [{"type": "Ready", "status": "False"}]


class Cluster(Protocol):
    """What a test does to a cluster: the same on the fake one and on a real one."""

    kubeconfig: Path
    namespace: str

    async def create(
        self, name: str, labels: Mapping[str, str], ip: str = "10.0.0.1", *, ready: bool = True
    ) -> None: ...

    async def patch(self, name: str, change: Mapping[str, Any]) -> None: ...

    async def patch_status(self, name: str, status: Mapping[str, Any]) -> None: ...

    async def delete(self, name: str, *, grace_s: int = 0) -> None: ...


class FakeCluster:
    """The fake API server."""

    namespace = "default"

    def __init__(self, api: FakeApiServer, kubeconfig: Path) -> None:
        self.api = api
        self.kubeconfig = api.write_kubeconfig(kubeconfig)

    async def create(
        self, name: str, labels: Mapping[str, str], ip: str = "10.0.0.1", *, ready: bool = True
    ) -> None:
        self.api.store.create(make_pod(name, labels=labels, ip=ip or None, ready=ready))

    async def patch(self, name: str, change: Mapping[str, Any]) -> None:
        self.api.store.patch("pods", name, dict(change), namespace=self.namespace)

    async def patch_status(self, name: str, status: Mapping[str, Any]) -> None:
        await self.patch(name, {"status": status})

    async def delete(self, name: str, *, grace_s: int = 0) -> None:
        self.api.store.delete("pods", name, namespace=self.namespace, grace=grace_s)


class RealCluster:
    """A cluster of one's own, in a namespace that is made for the test and deleted after it.

    Its pods are never scheduled: the test plays the kubelet.
    """

    def __init__(self, kubeconfig: Path, core: client.CoreV1Api) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = f"pdrouter-{uuid.uuid4().hex[:8]}"
        self._core = core

    async def create(
        self, name: str, labels: Mapping[str, str], ip: str = "10.0.0.1", *, ready: bool = True
    ) -> None:
        pod: Any = {
            "metadata": {"name": name, "labels": dict(labels)},
            "spec": {
                "schedulerName": "none",
                "containers": [{"name": "engine", "image": "none"}],
            },
        }
        await self._core.create_namespaced_pod(self.namespace, pod)
        conditions = READY if ready else UNREADY
        addresses = {"podIP": ip, "podIPs": [{"ip": ip}]} if ip else {}
        await self.patch_status(name, {"phase": "Running", "conditions": conditions, **addresses})

    async def patch(self, name: str, change: Mapping[str, Any]) -> None:
        await self._core.patch_namespaced_pod(name, self.namespace, dict(change))

    async def patch_status(self, name: str, status: Mapping[str, Any]) -> None:
        await self._core.patch_namespaced_pod_status(name, self.namespace, {"status": dict(status)})

    async def delete(self, name: str, *, grace_s: int = 0) -> None:
        await self._core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=grace_s)


@pytest.fixture(params=["fake", "real"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    if request.param == "fake":
        async with FakeApiServer() as api:
            yield FakeCluster(api, tmp_path / "kubeconfig")
        return
    path = os.environ.get("KUBECONFIG")
    if path is None:
        pytest.skip("KUBECONFIG names no cluster")
    configuration = client.Configuration()
    await config.load_kube_config(path, client_configuration=configuration)
    async with client.ApiClient(configuration) as api_client:
        core = client.CoreV1Api(api_client)
        real = RealCluster(Path(path), core)
        namespace: Any = {"metadata": {"name": real.namespace}}
        await core.create_namespace(namespace)
        try:
            yield real
        finally:
            await core.delete_namespace(real.namespace)


async def test_pods_that_are_there_are_known_from_the_first_sync_on(cluster: Cluster) -> None:
    await cluster.create("p", PREFILL, "10.0.0.1")
    await cluster.create("d", DECODE, "10.0.0.2")
    await cluster.create("whole", MODEL, "10.0.0.3")
    await cluster.create("stranger", {"app": "x"}, "10.0.0.4")
    async with run_informer(cluster.kubeconfig, namespaces=(cluster.namespace,)) as informer:
        assert informer.addresses == {
            "p": "10.0.0.1:8000",
            "d": "10.0.0.2:8000",
            "whole": "10.0.0.3:8000",
        }
        assert informer.cache.view.names == ("m",)


async def test_an_empty_cluster_is_synced_too(cluster: Cluster) -> None:
    async with run_informer(cluster.kubeconfig, namespaces=(cluster.namespace,)) as informer:
        assert informer.cache.synced
        assert informer.states == {}


async def test_a_pods_life(cluster: Cluster) -> None:
    async with run_informer(cluster.kubeconfig, namespaces=(cluster.namespace,)) as informer:
        await cluster.create("p", PREFILL, ip="", ready=False)
        await wait_for(lambda: informer.states == {"p": "unready"})
        await cluster.patch_status("p", {"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]})
        await cluster.patch_status("p", {"conditions": READY})
        await wait_for(lambda: informer.addresses == {"p": "10.0.0.9:8000"})
        await cluster.patch_status("p", {"conditions": UNREADY})
        await wait_for(lambda: informer.states == {"p": "unready"})
        await cluster.patch_status("p", {"conditions": READY})
        await wait_for(lambda: informer.states == {"p": "ready"})
        await cluster.delete("p")
        await wait_for(lambda: informer.states == {})


async def test_a_pod_that_comes_back_under_its_name_is_another_one(cluster: Cluster) -> None:
    async with run_informer(cluster.kubeconfig, namespaces=(cluster.namespace,)) as informer:
        uids: set[str] = set()
        for _ in range(2):
            await cluster.create("p", PREFILL)
            await wait_for(lambda: informer.states == {"p": "ready"})
            uids.update(pod.uid for pod in informer.cache.view.pods)
            await cluster.delete("p")
            await wait_for(lambda: informer.states == {})
        assert len(uids) == 2


async def test_labels_decide_what_a_pod_is(cluster: Cluster) -> None:
    await cluster.create("p", MODEL)
    async with run_informer(cluster.kubeconfig, namespaces=(cluster.namespace,)) as informer:

        async def relabel(role: str | None) -> None:
            await cluster.patch("p", {"metadata": {"labels": {"role-name": role}}})
            expected = [role or "both"]
            await wait_for(lambda: [pod.role for pod in informer.cache.view.pods] == expected)

        # In and out of both selectors.
        for role in ("prefill", "decode", None, "prefill"):
            await relabel(role)
        await cluster.patch("p", {"metadata": {"labels": {"model.aibrix.ai/name": None}}})
        await wait_for(lambda: informer.states == {})
        await cluster.patch("p", {"metadata": {"annotations": {"model.aibrix.ai/name": "a/b"}}})
        await wait_for(lambda: informer.cache.view.names == ("a/b",))


@pytest.mark.parametrize("transition", ["new", "previous"])
async def test_a_pod_that_leaves_the_selection_is_forgotten(
    tmp_path: Path, transition: Any
) -> None:
    # API servers say DELETED, with the object as it was before or as it is after.
    async with FakeApiServer(transition=transition) as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        await cluster.create("p", PREFILL)
        async with run_informer(cluster.kubeconfig) as informer:
            gone = {"model.aibrix.ai/name": None, "role-name": None}
            await cluster.patch("p", {"metadata": {"labels": gone}})
            await wait_for(lambda: informer.states == {})
            await cluster.patch("p", {"metadata": {"labels": PREFILL}})
            await wait_for(lambda: informer.states == {"p": "ready"})
            assert informer.lists == 1


async def test_a_terminating_pod_is_out_at_once(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        await cluster.create("p", PREFILL)
        async with run_informer(cluster.kubeconfig) as informer:
            await cluster.delete("p", grace_s=3600)
            await wait_for(lambda: informer.states == {"p": "terminating"})
            assert informer.addresses == {}
            api.store.finish_deletion("pods", "p", namespace="default")
            await wait_for(lambda: informer.states == {})


async def test_several_namespaces_and_all_of_them(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        for number, namespace in enumerate("abc", start=1):
            api.store.create(
                make_pod("p", namespace=namespace, labels=MODEL, ip=f"10.0.0.{number}")
            )
        for namespaces, names in (
            (("a",), {"m"}),
            (("a", "b"), {"a/m", "b/m"}),
            (("*",), {"a/m", "b/m", "c/m"}),
        ):
            async with run_informer(kubeconfig, namespaces=namespaces) as informer:
                assert set(informer.cache.view.names) == names
        async with run_informer(kubeconfig, namespaces=("*",), merge_namespaces=True) as informer:
            assert informer.cache.view.names == ("m",)
            assert len(informer.cache.view.models["m"].whole) == 3


async def test_thousands_of_pods_come_in_pages(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        for number in range(1000):
            api.store.create(
                make_pod(f"p{number}", labels=PREFILL, ip=f"10.1.{number // 250}.{number % 250}")
            )
        async with run_informer(kubeconfig) as informer:
            assert len(informer.addresses) == 1000
            assert api.count("list", "pods", labelSelector="role-name") == 5


async def test_pages_that_took_too_long_are_listed_again(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        for number in range(300):
            api.store.create(make_pod(f"p{number}", labels=PREFILL, ip="10.0.0.1"))
        api.faults.fail(410, verb="list", resource="pods", times=2)
        async with run_informer(kubeconfig) as informer:
            assert len(informer.states) == 300
            assert informer.restarts("expired") == 2


def adapter(*instances: str, name: str = "lora") -> dict[str, Any]:
    return {
        "apiVersion": "model.aibrix.ai/v1alpha1",
        "kind": "ModelAdapter",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"baseModel": "m", "artifactURL": "x", "podSelector": {}},
        "status": {"instances": list(instances)},
    }


async def test_adapters_come_and_go(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        await cluster.create("p", PREFILL, "10.0.0.1")
        await cluster.create("d", DECODE, "10.0.0.2")
        async with run_informer(cluster.kubeconfig) as informer:
            api.store.create(adapter("p"))
            await wait_for(lambda: "lora" in informer.cache.view.models)
            pods = informer.cache.view.models["lora"]
            assert [pod.name for pod in pods.prefill] == ["p"]
            assert [pod.name for pod in pods.whole] == ["d"]
            api.store.patch(
                "modeladapters", "lora", {"status": {"instances": []}}, namespace="default"
            )
            await wait_for(lambda: "lora" not in informer.cache.view.models)
            api.store.patch(
                "modeladapters", "lora", {"status": {"instances": ["p"]}}, namespace="default"
            )
            await wait_for(lambda: "lora" in informer.cache.view.models)
            api.store.delete("modeladapters", "lora", namespace="default")
            await wait_for(lambda: "lora" not in informer.cache.view.models)


@pytest.mark.parametrize("code", [403, 404])
async def test_a_cluster_without_adapters_is_no_error(tmp_path: Path, code: int) -> None:
    absent = ("modeladapters",) if code == 404 else ()
    async with FakeApiServer(absent=absent) as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        if code == 403:
            api.faults.fail(403, resource="modeladapters", times=None)
        await cluster.create("p", MODEL)
        async with run_informer(cluster.kubeconfig) as informer:
            assert informer.addresses == {"p": "10.0.0.1:8000"}
            assert informer.restarts(str(code)) >= 1


async def test_adapters_that_are_forbidden_later_stay_in_use(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        await cluster.create("p", MODEL)
        api.store.create(adapter("p"))
        async with run_informer(cluster.kubeconfig) as informer:
            await wait_for(lambda: "lora" in informer.cache.view.models)
            await wait_for(lambda: len(api.watches) == 3)
            api.faults.fail(403, resource="modeladapters", times=None)
            seen = api.count(resource="modeladapters")
            api.watches.abort()
            await wait_for(lambda: api.count(resource="modeladapters") >= seen + 2)
            assert "lora" in informer.cache.view.models


async def test_adapters_that_are_allowed_later_are_found(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        cluster = FakeCluster(api, tmp_path / "kubeconfig")
        await cluster.create("p", MODEL)
        api.store.create(adapter("p"))
        api.faults.fail(403, resource="modeladapters", times=2)
        async with run_informer(cluster.kubeconfig) as informer:
            await wait_for(lambda: "lora" in informer.cache.view.models)


async def test_the_store_refuses_what_a_server_refuses(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        with pytest.raises(ApiError):
            await FakeCluster(api, tmp_path / "kubeconfig").delete("nobody")


async def test_a_cancelled_informer_leaves_no_task(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        before = asyncio.all_tasks()
        async with run_informer(api.write_kubeconfig(tmp_path / "kubeconfig")):
            await wait_for(lambda: len(api.watches) == 3)
        await wait_for(lambda: len(api.watches) == 0)
        await wait_for(lambda: not (asyncio.all_tasks() - before))
