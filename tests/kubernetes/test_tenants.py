"""Several namespaces that share a router, on the fake API server."""

import asyncio
import logging
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from fakekube import FakeApiServer, make_pod
from informers import RULES, Informer, run_informer, wait_for

from pdrouter.cluster.kubernetes import api as kube_api
from pdrouter.cluster.kubernetes.api import KubeConfigInvalid, find_own_namespace
from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.pod_addresses import AddressRules

NAME = "model.aibrix.ai/name"
ROLE = {"role-name": "decode"}


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as api:
        yield api


def add_pod(
    api: FakeApiServer,
    namespace: str,
    model: str = "m",
    *,
    name: str = "pod",
    ip: str = "10.0.0.1",
    ready: bool = True,
) -> None:
    # A label cannot hold a slash, an annotation can.
    pod = make_pod(
        name, namespace=namespace, labels=ROLE, annotations={NAME: model}, ip=ip, ready=ready
    )
    api.store.create(pod)


def find_homes(informer: Informer, name: str) -> set[str]:
    pods = informer.cache.view.models.get(name)
    return {pod.namespace for pod in pods.pods} if pods else set()


async def test_a_tenant_takes_no_name_from_another(api: FakeApiServer, tmp_path: Path) -> None:
    add_pod(api, "evil", "prod/m")
    add_pod(api, "evil", "m", name="never-ready", ready=False)
    add_pod(api, "prod")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    async with run_informer(kubeconfig, namespaces=("*",)) as informer:
        view = informer.cache.view
        assert find_homes(informer, "prod/m") == {"prod"}
        assert find_homes(informer, "m") == {"prod"}
        assert view.ambiguous == {}
        unready = {"conditions": [{"type": "Ready", "status": "False"}]}
        api.store.patch("pods", "pod", {"status": unready}, namespace="prod")
        await wait_for(lambda: not informer.cache.view.models["m"].whole)
        assert find_homes(informer, "prod/m") == {"prod"}
        api.store.delete("pods", "pod", namespace="prod", grace=0)
        await wait_for(lambda: "prod/m" not in informer.cache.view.models)


async def test_the_name_of_a_namespace_without_pods_is_nobodys(
    api: FakeApiServer, tmp_path: Path
) -> None:
    api.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"}})
    add_pod(api, "evil", "prod/m")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    async with run_informer(kubeconfig, namespaces=("*",)) as informer:
        assert informer.cache.view.names == ("evil/prod/m",)
        assert "prod/m" not in informer.cache.view.models
        late = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}
        add_pod(api, "evil", "late/m", name="other")
        await wait_for(lambda: "late/m" in informer.cache.view.models)
        api.store.create(late)
        await wait_for(lambda: "late/m" not in informer.cache.view.models)
        api.store.delete("namespaces", "late")
        await asyncio.sleep(0.05)
        assert "late/m" not in informer.cache.view.models


async def test_namespaces_that_may_not_be_listed_are_known_by_their_pods(
    api: FakeApiServer, tmp_path: Path
) -> None:
    api.faults.fail(403, resource="namespaces", times=None)
    add_pod(api, "evil", "prod/m")
    add_pod(api, "prod", "other")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    async with run_informer(kubeconfig, namespaces=("*",)) as informer:
        assert set(informer.cache.view.names) == {"other", "evil/prod/m"}


async def test_namespaces_are_not_listed_where_some_are_named(
    api: FakeApiServer, tmp_path: Path
) -> None:
    add_pod(api, "one", "two/m")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    async with run_informer(kubeconfig, namespaces=("one", "two")) as informer:
        assert api.count("list", "namespaces") == 0
        assert informer.cache.view.names == ("one/two/m",)


async def test_a_model_can_be_reserved_for_a_namespace(
    api: FakeApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = PodRules(RULES.wires, model_namespaces=ModelNamespaces((("m", ("prod",)),)))
    add_pod(api, "evil")
    add_pod(api, "evil", "mine", name="mine")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    with caplog.at_level(logging.WARNING):
        async with run_informer(kubeconfig, namespaces=("*",), rules=rules) as informer:
            assert informer.states == {"pod": "refused", "mine": "ready"}
            assert set(informer.cache.view.models) == {"mine", "evil/mine"}
            api.store.create(
                {
                    "apiVersion": "model.aibrix.ai/v1alpha1",
                    "kind": "ModelAdapter",
                    "metadata": {"name": "m", "namespace": "evil"},
                    "spec": {"baseModel": "mine"},
                    "status": {"instances": ["mine"]},
                }
            )
            add_pod(api, "prod")
            await wait_for(lambda: find_homes(informer, "m") == {"prod"})
            assert "evil/m" not in informer.cache.view.models
    (record,) = [each for each in caplog.records if each.message == "a pod is refused"]
    assert vars(record)["fields"] == {
        "namespace": "evil",
        "pod": "pod",
        "model": "m",
        "reason": "namespace evil may not serve model 'm'",
    }


async def test_pods_at_addresses_that_are_none_are_refused_once(
    api: FakeApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = PodRules(
        RULES.wires,
        AddressRules(own=frozenset({ip_address("10.0.0.99")})),
    )
    addresses = ("127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "10.0.0.99")
    for number, ip in enumerate(addresses):
        add_pod(api, "default", name=f"bad-{number}", ip=ip)
    add_pod(api, "default", name="good", ip="10.0.0.7")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    with caplog.at_level(logging.WARNING):
        async with run_informer(kubeconfig, rules=rules) as informer:
            assert informer.addresses == {"good": "10.0.0.7:8000"}
            assert set(informer.states.values()) == {"ready", "refused"}
            assert [pod.name for pod in informer.cache.view.models["m"].pods] == ["good"]
            # What changes of such a pod changes nothing of that, and is not said again.
            api.store.patch("pods", "bad-0", {"metadata": {"annotations": {"x": "y"}}})
            api.store.patch("pods", "bad-1", {"status": {"podIP": "10.0.0.8"}})
            await wait_for(lambda: len(informer.addresses) == 2)
    assert len([each for each in caplog.records if each.message == "a pod is refused"]) == 5


async def test_a_name_that_is_given_up_is_free_after_a_while(
    api: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdrouter.cluster.names.LINGER_S", 0.2)
    add_pod(api, "old")
    add_pod(api, "new")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    async with run_informer(kubeconfig, namespaces=("*",)) as informer:
        assert set(informer.cache.view.ambiguous) == {"m"}
        api.store.delete("pods", "pod", namespace="old", grace=0)
        # Nothing else happens in the cluster.
        await wait_for(lambda: find_homes(informer, "m") == {"new"})


class TestOwnNamespace:
    """What is watched unless told otherwise."""

    async def test_it_is_that_of_the_kubeconfigs_context(
        self, api: FakeApiServer, tmp_path: Path
    ) -> None:
        add_pod(api, "mine", name="mine")
        add_pod(api, "other", name="other")
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig", namespace="mine")
        async with run_informer(kubeconfig, namespaces=()) as informer:
            assert set(informer.states) == {"mine"}

    async def test_where_there_are_no_pods_the_log_says_where_it_looks(
        self, api: FakeApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        add_pod(api, "other")
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig", namespace="mine")
        async with run_informer(kubeconfig, namespaces=()):
            (record,) = [each for each in caplog.records if "no pods" in each.message]
        assert "/api/v1/namespaces/mine/pods?role-name" in vars(record)["fields"]["watches"]

    def test_a_context_that_names_none_means_the_default_one(self, tmp_path: Path) -> None:
        kubeconfig = FakeApiServer().write_kubeconfig(tmp_path / "kubeconfig", namespace="")
        assert find_own_namespace(kubeconfig) == "default"

    def test_it_is_that_of_the_service_account(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "namespace"
        file.write_text("inference\n")
        monkeypatch.setattr(kube_api, "_OWN_NAMESPACE", file)
        assert find_own_namespace(None) == "inference"

    @pytest.mark.parametrize("text", [None, "{", "[]", "clusters: 7"])
    def test_without_any_the_router_does_not_start(
        self, tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kubeconfig = tmp_path / "kubeconfig"
        if text is not None:
            kubeconfig.write_text(text)
        reason = "kubeconfig: there is no such file$" if text is None else "kubeconfig: "
        with pytest.raises(KubeConfigInvalid, match=reason):
            find_own_namespace(kubeconfig)
        monkeypatch.setattr(kube_api, "_OWN_NAMESPACE", tmp_path / "none")
        with pytest.raises(KubeConfigInvalid, match="service account"):
            find_own_namespace(None)
