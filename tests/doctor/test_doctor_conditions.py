"""What controllers say of objects: every condition that is not met is found, with its message."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fakekube import FakeApiServer, make_pod
from setups import Documents, accept, codes, endpoint_override, find

from pdrouter.cli import main
from pdrouter.cluster.kubernetes.api import KubeApi, connect_by_kubeconfig
from pdrouter.tools.doctor.diagnosis import Diagnosis, diagnose
from pdrouter.tools.doctor.findings import Finding
from pdrouter.tools.doctor.live import read_cluster, read_home_namespace
from pdrouter.tools.doctor.objects.kinds import KINDS
from pdrouter.tools.doctor.snapshot import Document, Snapshot


def accepted() -> Documents:
    """A healthy installation with what its controllers say of it."""
    return [document | {"status": accept(document)} for document in endpoint_override()]


def say(kind: str, path: tuple[str | int, ...], condition: dict[str, Any]) -> tuple[Finding, ...]:
    """The findings when one more condition stands in the status of an object."""
    documents = accepted()
    place: Any = find(documents, kind)["status"]
    for key in path:
        place = place[key]
    others = [each for each in place["conditions"] if each["type"] != condition["type"]]
    place["conditions"] = [*others, condition]
    return diagnose(Snapshot.build(map(Document, documents))).findings


@pytest.mark.parametrize("status", ["False", "Unknown"])
@pytest.mark.parametrize("condition", ["Accepted", "Programmed", "ResolvedRefs"])
@pytest.mark.parametrize(
    ("kind", "path", "whom"),
    [
        ("GatewayClass", (), ""),
        ("Gateway", (), ""),
        ("Gateway", ("listeners", 0), " for listener http"),
        ("HTTPRoute", ("parents", 0), " for Gateway llm"),
        ("EnvoyExtensionPolicy", ("ancestors", 0), " for Gateway llm"),
        ("ClientTrafficPolicy", ("ancestors", 0), " for Gateway llm"),
        ("BackendTrafficPolicy", ("ancestors", 0), " for Gateway llm"),
    ],
)
def test_a_condition_that_is_not_true_is_found_with_its_message(
    kind: str, path: tuple[str | int, ...], whom: str, condition: str, status: str
) -> None:
    said = {"type": condition, "status": status, "reason": "Odd", "message": "It is odd."}

    (finding,) = say(kind, path, said)

    assert finding.check.code == "condition-not-met"
    assert finding.defect.object.kind == kind
    assert finding.defect.problem == f"{condition} is {status}{whom}: Odd: It is odd."


@pytest.mark.parametrize(
    ("condition", "status", "found"),
    [
        ("Conflicted", "True", True),
        ("Conflicted", "False", False),
        ("PartiallyInvalid", "True", True),
        ("Overridden", "True", False),
        ("Overridden", "False", False),
        ("SomethingElse", "False", False),
    ],
)
def test_conditions_that_mean_harm_are_found_when_they_are_true(
    condition: str, status: str, found: bool
) -> None:
    findings = say("HTTPRoute", ("parents", 0), {"type": condition, "status": status})

    assert [each.check.code for each in findings] == ["condition-not-met"] * found


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("Disabled", "enableEnvoyPatchPolicy: true"),
        ("ResourceNotFound", "NAMESPACE/GATEWAY/LISTENER"),
        ("NotAllowedByListeners", "allowedRoutes"),
        ("RefNotPermitted", "ReferenceGrant"),
    ],
)
def test_what_a_reason_asks_for_is_said(reason: str, advice: str) -> None:
    said = {"type": "Accepted", "status": "False", "reason": reason}

    (finding,) = say("EnvoyExtensionPolicy", ("ancestors", 0), said)

    assert advice in finding.defect.fix


@pytest.mark.parametrize(
    "kind",
    ["EnvoyPatchPolicy", "SecurityPolicy", "Backend", "EnvoyProxy"],
)
def test_further_kinds_are_read(kind: str) -> None:
    said = [{"type": "Accepted", "status": "False", "reason": "Invalid", "message": "no"}]
    status = {"ancestors": [{"conditions": said}]} if kind != "Backend" else {"conditions": said}
    document = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "own"},
        "status": status,
    }

    assert "condition-not-met" in codes(diagnose(Snapshot.build([Document(document)])))


@pytest.mark.parametrize(
    ("version", "kind", "group"),
    [
        ("gateway.networking.k8s.io/v1", "BackendTLSPolicy", "ancestors"),
        ("inference.networking.k8s.io/v1", "InferencePool", "parents"),
    ],
)
def test_kinds_of_other_groups_are_read(version: str, kind: str, group: str) -> None:
    said = [{"type": "ResolvedRefs", "status": "False", "reason": "InvalidExtensionRef"}]
    document = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "own"},
        "status": {group: [{"conditions": said}]},
    }

    (finding,) = diagnose(Snapshot.build([Document(document)])).findings
    assert finding.defect.problem.endswith("InvalidExtensionRef")


def test_a_status_of_an_older_version_of_the_object_is_found() -> None:
    documents = accepted()
    find(documents, "HTTPRoute")["metadata"]["generation"] = 2

    diagnosis = diagnose(Snapshot.build(map(Document, documents)))

    assert codes(diagnosis) == {"status-stale"}
    assert "of generation 1; the object has 2" in diagnosis.findings[0].defect.problem


def test_manifests_have_no_status() -> None:
    assert codes(diagnose(Snapshot.build(map(Document, endpoint_override())))) == set()


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    """A server with a healthy installation."""
    async with FakeApiServer() as server:
        for document in accepted():
            server.store.create(document)
        for name in ("router", "decode", "prefill"):
            labels = {"app": name, "role-name": name, "model.aibrix.ai/name": "llama"}
            pod = make_pod(name, labels=labels, ip="127.0.0.1")
            pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": name}]
            server.store.create(pod)
        instances = {"status": {"instances": ["decode", "prefill"]}}
        server.store.patch("modeladapters", "llama-sql", instances)
        yield server


async def examine(api: FakeApiServer, tmp_path: Path, home: str = "default") -> Diagnosis:
    connect = connect_by_kubeconfig(api.write_kubeconfig(tmp_path / "kubeconfig"))
    async with KubeApi(connect) as client:
        return diagnose(await read_cluster(client, (), home=home, probe=False))


async def test_an_object_that_no_controller_has_taken_is_found_in_a_cluster(
    api: FakeApiServer, tmp_path: Path
) -> None:
    assert codes(await examine(api, tmp_path)) == set()
    api.store.patch("httproutes", "llm", {"status": None})

    (finding,) = (await examine(api, tmp_path)).findings

    assert (finding.check.code, str(finding.defect.object)) == (
        "status-missing",
        "HTTPRoute default/llm",
    )


async def test_a_patch_policy_that_is_not_enabled_is_found_in_a_cluster(
    api: FakeApiServer, tmp_path: Path
) -> None:
    message = "EnvoyPatchPolicy is disabled in the EnvoyGateway configuration"
    said = {"type": "Accepted", "status": "False", "reason": "Disabled", "message": message}
    api.store.create(
        {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyPatchPolicy",
            "metadata": {"name": "own", "namespace": "default"},
            "spec": {
                "type": "JSONPatch",
                "targetRef": {"kind": "Gateway", "name": "llm"},
                "jsonPatches": [],
            },
            "status": {"ancestors": [{"ancestorRef": {"name": "llm"}, "conditions": [said]}]},
        }
    )

    (finding,) = (await examine(api, tmp_path)).findings

    assert finding.defect.problem == f"Accepted is False for Gateway llm: Disabled: {message}"


async def test_what_may_be_read_in_one_namespace_only_is_read_there(
    api: FakeApiServer, tmp_path: Path
) -> None:
    api.store.create(make_pod("lonely", labels={"role-name": "prefill"}))
    # The list of all namespaces is refused, that of one is not.
    for kind in ("pods", "services"):
        api.faults.fail(403, verb="list", resource=kind, times=1)

    diagnosis = await examine(api, tmp_path)

    assert codes(diagnosis) == {"pod-without-model"}
    (note,) = diagnosis.notes
    assert note.startswith("Pod, Service: checked in namespace default only, name others with")
    assert "(403 " in note


async def test_who_may_list_nothing_in_all_namespaces_gets_a_diagnosis_of_one(
    api: FakeApiServer, tmp_path: Path
) -> None:
    api.store.patch("httproutes", "llm", {"status": None})
    for kind in KINDS:
        api.faults.fail(403, verb="list", resource=kind.plural, times=1, message=" ")

    diagnosis = await examine(api, tmp_path)

    assert codes(diagnosis) == {"status-missing"}
    assert sorted(note.partition(": ")[2].partition(" (")[0] for note in diagnosis.notes) == [
        "checked in namespace default only, name others with --namespaces",
        "not checked",
    ]


async def test_who_may_list_nothing_at_all_is_told_so(
    api: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.faults.fail(403, times=None)
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")

    assert await asyncio.to_thread(main, ["doctor", "--kubeconfig", str(kubeconfig)]) == 1
    assert "nothing may be listed" in capsys.readouterr().err


async def test_what_is_missing_where_nothing_may_be_read_is_not_missed(
    api: FakeApiServer, tmp_path: Path
) -> None:
    for kind in ("services", "gateways", "httproutes", "pods"):
        api.faults.fail(403, verb="list", resource=kind, times=1)

    diagnosis = await examine(api, tmp_path, home="elsewhere")

    assert codes(diagnosis) == set()
    assert diagnosis.notes[0].startswith(
        "Pod, Service, Gateway, HTTPRoute: checked in namespace elsewhere only"
    )


async def test_many_equal_findings_are_one(api: FakeApiServer, tmp_path: Path) -> None:
    for number in range(1667):
        api.store.create(make_pod(f"lonely-{number}", labels={"role-name": "prefill"}))

    diagnosis = await examine(api, tmp_path)

    (finding,) = diagnosis.findings
    assert len(finding.defects) == 1667


CONFIG = """
current-context: %s
contexts:
- {name: a, context: {cluster: x, namespace: team-a}}
- {name: b, context: {cluster: x}}
"""


@pytest.mark.parametrize(
    ("texts", "namespace"),
    [
        ([CONFIG % "a"], "team-a"),
        ([CONFIG % "b"], "default"),
        ([CONFIG % "c"], "default"),
        (["", CONFIG % "a"], "team-a"),
        (["current-context: a", CONFIG % "b"], "team-a"),
        ([": ["], "default"),
        (["- a"], "default"),
    ],
)
def test_the_namespace_of_a_context_is_read(
    tmp_path: Path, texts: list[str], namespace: str
) -> None:
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)

    assert read_home_namespace(Path(os.pathsep.join(map(str, files)))) == namespace


def test_without_a_kubeconfig_and_outside_a_pod_it_is_the_default() -> None:
    assert read_home_namespace(None) == "default"
