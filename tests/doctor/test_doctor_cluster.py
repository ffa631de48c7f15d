"""The doctor on a cluster: what it reads there, and what it makes of what it may not read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakekube import FakeApiServer, make_pod
from setups import Documents, accept, codes, endpoint_override

from pdrouter.cli import main
from pdrouter.cluster.kubernetes.api import KubeApi, KubeRefused, connect_by_kubeconfig
from pdrouter.tools.doctor.diagnosis import Diagnosis, diagnose
from pdrouter.tools.doctor.live import read_cluster

LLAMA = {"model.aibrix.ai/name": "llama"}
ROLES = {"prefill": LLAMA | {"role-name": "prefill"}, "decode": LLAMA | {"role-name": "decode"}}


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    """A server with a healthy installation."""
    async with FakeApiServer() as server:
        fill(server, endpoint_override())
        yield server


def fill(api: FakeApiServer, documents: Documents) -> None:
    for document in documents:
        api.store.create(document | {"status": accept(document)})
    for name, labels in (ROLES | {"router": {"app": "router"}}).items():
        pod = make_pod(name, labels=labels, ip="127.0.0.1")
        pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": name}]
        api.store.create(pod)
    api.store.patch("modeladapters", "llama-sql", {"status": {"instances": list(ROLES)}})


async def examine(
    api: FakeApiServer, tmp_path: Path, *namespaces: str, probe: bool = False
) -> Diagnosis:
    connect = connect_by_kubeconfig(api.write_kubeconfig(tmp_path / "kubeconfig"))
    async with KubeApi(connect) as client:
        return diagnose(await read_cluster(client, namespaces, home="default", probe=probe))


async def test_nothing_is_found_in_a_healthy_cluster(api: FakeApiServer, tmp_path: Path) -> None:
    diagnosis = await examine(api, tmp_path)

    assert diagnosis.findings == ()
    assert diagnosis.notes == ()


async def test_a_broken_cluster_is_found_out(api: FakeApiServer, tmp_path: Path) -> None:
    api.store.delete("rolebindings", "router")
    api.store.patch("modeladapters", "llama-sql", {"status": {"instances": ["prefill"]}})

    diagnosis = await examine(api, tmp_path)

    assert codes(diagnosis) == {"pods-forbidden", "adapters-forbidden", "adapter-without-decode"}


async def test_an_adapter_that_no_pod_has_loaded_is_found(
    api: FakeApiServer, tmp_path: Path
) -> None:
    api.store.patch("modeladapters", "llama-sql", {"status": {"instances": []}})

    assert codes(await examine(api, tmp_path)) == {"adapter-unserved"}


async def test_pods_without_a_workload_are_looked_at(api: FakeApiServer, tmp_path: Path) -> None:
    api.store.create(make_pod("lonely", labels={"role-name": "prefill"}))

    (finding,) = (await examine(api, tmp_path)).findings

    assert (finding.check.code, str(finding.defect.object)) == (
        "pod-without-model",
        "Pod default/lonely",
    )


async def test_lists_of_many_pages_are_read(api: FakeApiServer, tmp_path: Path) -> None:
    for number in range(600):
        api.store.create(make_pod(f"lonely-{number}", labels={"role-name": "prefill"}))

    (finding,) = (await examine(api, tmp_path)).findings
    assert len(finding.defects) == 600


async def test_what_may_not_be_read_is_noted_and_not_judged(
    api: FakeApiServer, tmp_path: Path
) -> None:
    for resource in ("poddisruptionbudgets", "roles", "backendtrafficpolicies"):
        api.faults.fail(403, resource=resource, times=None)

    diagnosis = await examine(api, tmp_path)

    (note,) = diagnosis.notes
    assert note.startswith("PodDisruptionBudget, Role, BackendTrafficPolicy: not checked (403 ")
    assert codes(diagnosis) == {"model-circuit-breaker"}


async def test_kinds_that_are_not_installed_are_no_matter(tmp_path: Path) -> None:
    documents = endpoint_override()
    absent = (
        "clienttrafficpolicies",
        "backendtrafficpolicies",
        "envoyextensionpolicies",
        "modeladapters",
    )
    async with FakeApiServer(absent=absent) as server:
        kinds = {
            "ClientTrafficPolicy",
            "BackendTrafficPolicy",
            "EnvoyExtensionPolicy",
            "ModelAdapter",
        }
        for document in documents:
            if document["kind"] == "Role":
                del document["rules"][1]
            if document["kind"] not in kinds:
                server.store.create(document | {"status": accept(document)})
        server.store.create(make_pod("router", labels={"app": "router"}))
        server.store.create(make_pod("decode", labels=ROLES["decode"]))
        diagnosis = await examine(server, tmp_path)

    assert diagnosis.findings == ()
    assert diagnosis.notes == (
        "no EnvoyExtensionPolicy leads to a router: the gateway was not checked",
    )


async def test_namespaces_can_be_chosen(api: FakeApiServer, tmp_path: Path) -> None:
    for namespace in ("one", "two"):
        api.store.create(make_pod("p", namespace=namespace, labels={"role-name": "prefill"}))

    diagnosis = await examine(api, tmp_path, "default", "one")

    assert [str(each.defect.object) for each in diagnosis.findings] == ["Pod one/p"]
    assert api.count("list", "pods") == 2


@pytest.mark.parametrize(
    ("code", "resource"), [(500, "services"), (401, "services"), (403, None), (404, None)]
)
async def test_a_server_that_does_not_serve_is_no_diagnosis(
    api: FakeApiServer, tmp_path: Path, code: int, resource: str | None
) -> None:
    api.faults.fail(code, resource=resource, times=None)

    with pytest.raises(KubeRefused):
        await examine(api, tmp_path)


async def test_pods_that_take_no_connection_are_found_by_probing(tmp_path: Path) -> None:
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        ports = {"open": listener.sockets[0].getsockname()[1], "closed": closed.getsockname()[1]}
        async with listener, FakeApiServer() as server:
            for name, port in ports.items():
                annotations = {"model.aibrix.ai/port": str(port)}
                for ready in (True, False):
                    server.store.create(
                        make_pod(
                            name if ready else f"{name}-unready",
                            labels={"model.aibrix.ai/name": "m"},
                            annotations=annotations,
                            ip="127.0.0.1",
                            port=port,
                            ready=ready,
                        )
                    )
            without = await examine(server, tmp_path)
            diagnosis = await examine(server, tmp_path, probe=True)

    assert without.findings == ()
    (finding,) = diagnosis.findings
    assert (finding.check.code, str(finding.defect.object)) == (
        "pod-unreachable",
        "Pod default/closed",
    )


async def test_ready_pods_without_a_partner_of_their_version_are_found(tmp_path: Path) -> None:
    async with FakeApiServer() as server:
        for name, role, image in (
            ("old-prefill", "prefill", "vllm:1"),
            ("new-prefill", "prefill", "vllm:2"),
            ("old-decode", "decode", "vllm:1"),
        ):
            labels = {"model.aibrix.ai/name": "m", "role-name": role}
            server.store.create(make_pod(name, labels=labels, image=image))
        diagnosis = await examine(server, tmp_path)
        server.store.create(
            make_pod(
                "new-decode",
                labels={"model.aibrix.ai/name": "m", "role-name": "decode"},
                image="vllm:2",
            )
        )
        later = await examine(server, tmp_path)

    (finding,) = [each for each in diagnosis.findings if each.check.code == "pod-unmatched"]
    assert [str(defect.object) for defect in finding.defects] == ["Pod default/new-prefill"]
    assert "no ready decode pod of its revision sha256:" in finding.defect.problem
    assert "pod-unmatched" not in codes(later)


async def test_the_command_reads_the_cluster_of_a_kubeconfig(
    api: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    api.store.delete("rolebindings", "router")
    arguments = ["doctor", "--json", "--namespaces", "default,other", "--kubeconfig"]

    code = await asyncio.to_thread(main, [*arguments, str(kubeconfig)])

    report = json.loads(capsys.readouterr().out)
    assert (code, report["errors"], report["warnings"]) == (1, 1, 1)


async def test_the_command_finds_the_kubeconfig_as_kubectl_does(
    api: FakeApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert await asyncio.to_thread(main, ["doctor"]) == 1
    assert "no service account" in capsys.readouterr().err

    (tmp_path / ".kube").mkdir()
    api.write_kubeconfig(tmp_path / ".kube" / "config")
    assert await asyncio.to_thread(main, ["doctor"]) == 0

    monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "other")))
    (tmp_path / ".kube" / "config").unlink()
    assert await asyncio.to_thread(main, ["doctor"]) == 0


async def test_a_cluster_that_is_away_gives_exit_code_1(
    api: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    await api.stop()

    assert await asyncio.to_thread(main, ["doctor", "--kubeconfig", str(kubeconfig)]) == 1
    assert capsys.readouterr().err.startswith("pdrouter doctor: ")
