"""The doctor on manifests: how they are read, and what it says of those that we ship."""

import io
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from setups import codes, endpoint_override

from pdrouter.cli import main
from pdrouter.tools.doctor.diagnosis import diagnose
from pdrouter.tools.doctor.manifests import ManifestsUnreadable, read_manifests
from pdrouter.tools.doctor.report import render_json, render_text

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "tests" / "data" / "setup-guide.md"
OVERLAYS = sorted(path for path in (ROOT / "deploy" / "overlays").iterdir() if path.is_dir())
ENGINES = [ROOT / "deploy" / "examples" / name for name in ("gpu", "trainium2", "simulated")]


def read(text: str) -> set[str]:
    return {str(thing.ref) for thing in read_manifests(["-"], io.StringIO(text)).objects}


def kustomize(directory: Path) -> str:
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
    arguments = [kubectl, "kustomize", str(directory)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def read_guide() -> str:
    """The manifests of the setup guide: its YAML blocks, and what it pipes to kubectl."""
    text = GUIDE.read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    blocks += re.findall(r"<<EOF\n(.*?)\nEOF", text, re.DOTALL)
    return "\n---\n".join(blocks)


POD = "{apiVersion: v1, kind: Pod, metadata: {name: a}}"


@pytest.mark.parametrize(
    ("text", "refs"),
    [
        (POD, {"Pod default/a"}),
        (f"---\n---\n{POD}\n---\n", {"Pod default/a"}),
        (f"{POD}\n---\n{POD}", {"Pod default/a"}),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b}}", {"Pod b/a"}),
        (f"{{apiVersion: v1, kind: List, items: [{POD}]}}", {"Pod default/a"}),
        (f"{{apiVersion: v1, kind: PodList, items: [{POD}]}}", {"Pod default/a"}),
        (json.dumps(yaml.safe_load(POD)), {"Pod default/a"}),
        ("{apiVersion: v1, kind: Secret, metadata: {name: a}}", set()),
        ("{apiVersion: other/v1, kind: Pod, metadata: {name: a}}", set()),
        ("{a: b}", set()),
        (
            "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: a}}",
            {"ClusterRole a"},
        ),
    ],
)
def test_objects_are_read_from_a_stream_of_documents(text: str, refs: set[str]) -> None:
    assert read(text) == refs


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n"])
def test_no_object_at_all_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As when what should have printed the objects has failed.
    monkeypatch.setattr("sys.stdin", io.StringIO(text))

    assert main(["doctor", "--manifests", "-"]) == 2
    assert "no object" in capsys.readouterr().err


def test_files_and_directories_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, file in (("a", "a.yaml"), ("b", "deep/b.yml"), ("c", "c.json"), ("d", "notes.txt")):
        (tmp_path / file).write_text(POD.replace("name: a", f"name: {name}"))

    from_directory = read_manifests([str(tmp_path)], io.StringIO())
    from_files = read_manifests([str(tmp_path / "a.yaml"), "-"], io.StringIO(POD))

    assert {thing.metadata.name for thing in from_directory.objects} == {"a", "b", "c"}
    assert {thing.metadata.name for thing in from_files.objects} == {"a"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "a.yaml"),
        (b"\xff\xfe\xff", "a.yaml"),
        (b"just text", "no object"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)

    with pytest.raises(ManifestsUnreadable, match=words):
        read_manifests([str(tmp_path)], io.StringIO())


def test_dates_are_text() -> None:
    text = POD.replace("name: a", "name: a, annotations: {since: 2026-01-31}")

    assert read(text) == {"Pod default/a"}


def test_a_kustomization_is_to_be_built_first(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "kustomization.yaml").write_text("resources: []")

    with pytest.raises(ManifestsUnreadable, match=r"kubectl kustomize .*base"):
        read_manifests([str(tmp_path)], io.StringIO())


def test_a_healthy_installation_gives_exit_code_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump_all(endpoint_override())))

    assert main(["doctor", "--manifests", "-"]) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings\n"


@pytest.mark.parametrize(
    ("key", "value", "code"), [("failOpen", True, 0), ("messageTimeout", None, 1)]
)
def test_only_errors_give_exit_code_1(
    tmp_path: Path,
    key: str,
    value: object,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = endpoint_override()
    (policy,) = (each for each in documents if each["kind"] == "EnvoyExtensionPolicy")
    policy["spec"]["extProc"][0][key] = value
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))

    assert main(["doctor", "--json", "--manifests", str(tmp_path)]) == code
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert (report["errors"], report["warnings"]) == ((1, 0) if code else (0, 1))
    assert finding["object"] == {
        "kind": "EnvoyExtensionPolicy",
        "namespace": "default",
        "name": "router",
    }
    assert finding["field"] == f"spec.extProc[0].{key}"
    assert {"code", "severity", "problem", "why", "fix"} <= finding.keys()


def test_a_missing_file_gives_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--manifests", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_the_report_for_people_says_everything_of_a_finding() -> None:
    documents = endpoint_override()
    documents = [each for each in documents if each["kind"] != "PodDisruptionBudget"]
    diagnosis = diagnose(read_manifests(["-"], io.StringIO(yaml.safe_dump_all(documents))))

    assert render_text(diagnosis) == (
        "warning: Deployment default/router  [disruption-budget-missing]\n"
        "  where: PodDisruptionBudget spec.selector\n"
        "  found: no budget selects its pods\n"
        "  why:   A drain of nodes may take all of them at once, and with them every open "
        "request.\n"
        "  fix:   add a PodDisruptionBudget with maxUnavailable: 1\n"
        "\n"
        "0 errors, 1 warning\n"
    )
    assert json.loads(render_json(diagnosis))["warnings"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
@pytest.mark.parametrize("engines", ENGINES, ids=lambda path: path.name)
def test_the_shipped_manifests_have_no_error(overlay: Path, engines: Path) -> None:
    text = kustomize(overlay) + "---\n" + kustomize(engines)
    diagnosis = diagnose(read_manifests(["-"], io.StringIO(text)))

    errors = {each.check.code for each in diagnosis.findings if each.check.severity == "error"}
    assert errors == set()
    assert diagnosis.notes == ()


def test_the_setup_guide_works_but_is_not_all_well() -> None:
    diagnosis = diagnose(read_manifests(["-"], io.StringIO(read_guide())))

    assert codes(diagnosis) == {"nixl-host-local", "adapter-shadowed"}


def test_the_set_up_of_the_guide_has_no_error() -> None:
    documents = list(yaml.safe_load_all(kustomize(ROOT / "deploy" / "overlays" / "aibrix")))
    for document in documents:
        if document["kind"] == "Deployment":
            environment = document["spec"]["template"]["spec"]["containers"][0]["env"]
            environment += [
                {"name": "ROUTING_ALGORITHM", "value": "pd"},
                {"name": "AIBRIX_PREFILL_REQUEST_TIMEOUT", "value": "600"},
            ]
        if document["kind"] == "EnvoyExtensionPolicy":
            document["spec"]["extProc"][0]["messageTimeout"] = "600s"
    text = yaml.safe_dump_all(documents) + "---\n" + read_guide()

    diagnosis = diagnose(read_manifests(["-"], io.StringIO(text)))

    assert codes(diagnosis) == {"nixl-host-local", "adapter-shadowed", "message-timeout-tight"}


@pytest.mark.parametrize(
    ("document", "field", "fix"),
    [
        (
            (
                "{apiVersion: gateway.envoyproxy.io/v1alpha1, kind: EnvoyExtensionPolcy, "
                "metadata: {name: a}}"
            ),
            "kind",
            "did you mean EnvoyExtensionPolicy?",
        ),
        (
            "{apiVersion: gateway.envoyproxy.io/v1, kind: EnvoyProxy, metadata: {name: a}}",
            "apiVersion",
            "write gateway.envoyproxy.io/v1alpha1",
        ),
        (
            "{apiVersion: gateway.envoyproxy.com/v1alpha1, kind: EnvoyProxy, metadata: {name: a}}",
            "apiVersion",
            "write gateway.envoyproxy.io/v1alpha1",
        ),
        ("{apiVersion: v1, kind: Deployment, metadata: {name: a}}", "apiVersion", "write apps/v1"),
        (
            "{apiVersion: apps/v1beta1, kind: Deployment, metadata: {name: a}}",
            "apiVersion",
            "write apps/v1",
        ),
        ("{apiVersion: v1, kind: Pods, metadata: {name: a}}", "kind", "did you mean Pod?"),
        ("{kind: Pod, metadata: {name: a}}", "apiVersion", "say what the document is"),
        ("{apiVersion: v1, metadata: {name: a}}", "kind", "say what the document is"),
        ("{apiVersion: v1, kind: Pod}", "metadata.name", "give it one"),
    ],
)
def test_a_document_that_nobody_knows_is_found_with_its_line(
    document: str, field: str, fix: str
) -> None:
    text = f"# a comment\n---\n{POD}\n---\n{document}\n"
    (finding,) = diagnose(read_manifests(["-"], io.StringIO(text))).findings

    assert finding.check.code == "kind-unknown"
    assert (finding.defect.field, finding.defect.fix) == (field, fix)
    assert finding.defect.problem.endswith(", at standard input:5")


@pytest.mark.parametrize(
    "document",
    [
        "{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {name: a}}",
        "{apiVersion: orchestration.aibrix.ai/v1alpha1, kind: StormService, metadata: {name: a}}",
        "{apiVersion: autoscaling.aibrix.ai/v1alpha1, kind: PodAutoscaler, metadata: {name: a}}",
        "{apiVersion: gateway.networking.x-k8s.io/v1alpha1, kind: XBackend, metadata: {name: a}}",
        "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: HTTPRoute, metadata: {name: a}}",
        "{apiVersion: batch/v1, kind: Job, metadata: {generateName: a-}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: a}}",
    ],
)
def test_kinds_of_others_are_not_found(document: str) -> None:
    assert codes(diagnose(read_manifests(["-"], io.StringIO(document)))) == set()


@pytest.mark.parametrize(
    ("kind", "path", "right", "wrong"),
    [
        ("EnvoyExtensionPolicy", "spec.extProc[0]", "messageTimeout", "messageTimout"),
        ("EnvoyExtensionPolicy", "spec.extProc[0].processingMode", "request", "reqest"),
        ("EnvoyExtensionPolicy", "spec.extProc[0]", "backendRefs", "backendRef"),
        ("EnvoyExtensionPolicy", "spec", "targetRefs", "targetRef_s"),
        ("ClientTrafficPolicy", "spec.connection", "bufferLimit", "buffer_limit"),
        ("HTTPRoute", "spec", "parentRefs", "parentRef"),
        ("Gateway", "", "spec", "specs"),
        ("Gateway", "metadata", "name", "Name"),
    ],
)
def test_a_field_that_is_almost_right_is_found(
    kind: str, path: str, right: str, wrong: str
) -> None:
    documents = endpoint_override()
    parent: Any = next(each for each in documents if each["kind"] == kind)
    for key in path.replace("[0]", ".0").split(".") if path else []:
        parent = parent[int(key) if key == "0" else key]
    parent[wrong] = parent.pop(right)
    if wrong == "Name":
        parent["generateName"] = "llm-"

    diagnosis = diagnose(read_manifests(["-"], io.StringIO(yaml.safe_dump_all(documents))))

    misspelt = [
        defect
        for finding in diagnosis.findings
        if finding.check.code == "field-misspelt"
        for defect in finding.defects
    ]
    assert [(defect.field, defect.fix) for defect in misspelt] == [
        (f"{path}.{wrong}".lstrip("."), f"did you mean {right}?")
    ]


def test_fields_that_the_doctor_does_not_read_are_not_found() -> None:
    text = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: a, creationTimestamp: null, managedFields: []}
    spec:
      selector: {matchLabels: {app: a}}
      template:
        metadata: {labels: {app: a, sepc: x}}
        spec: {initContainers: [], serviceAccount: a, containers: [{name: a, imagePullPolicy: x}]}
    """

    assert codes(diagnose(read_manifests(["-"], io.StringIO(text)))) == set()


def test_an_object_that_is_there_twice_is_found_with_both_lines(tmp_path: Path) -> None:
    other = POD.replace("name: a", "name: a, labels: {app: b}")
    (tmp_path / "a.yaml").write_text(f"---\n{POD}\n---\n{other}\n---\n{POD}\n")

    diagnosis = diagnose(read_manifests([str(tmp_path)], io.StringIO()))

    assert codes(diagnosis) == {"object-duplicate"}
    problems = [defect.problem for finding in diagnosis.findings for defect in finding.defects]
    file = tmp_path / "a.yaml"
    assert problems == [
        f"it is there twice, the second time with {content}, at {file}:{line}; the first is at "
        f"{file}:2"
        for content, line in (("another content", 4), ("the same", 6))
    ]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: [\n", "a.yaml:3:1", "expected"),
        ("a: 1\n  b: 2\n", "a.yaml:2:4", "mapping values are not allowed"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "a.yaml:4:3", "the key 'b' is there twice"),
        ("a: *nobody\n", "a.yaml:1:4", "undefined alias"),
        ("---\na: 1\n---\n- 1\n", "a.yaml:4", "no object"),
        ("a: \x00\n", "a.yaml", "not allowed"),
        ("a: &a [*a]\n", "a.yaml:1", "without end"),
        (
            "a: &a [1, 1]\n" + "".join(f"k{n}: &{n} [*{n - 1}, *{n - 1}]\n" for n in range(1, 30)),
            "a.yaml",
            "",
        ),
        ("[" * 3000 + "]" * 3000, "a.yaml", "recursion"),
    ],
)
def test_a_broken_document_is_named_with_its_line(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    (tmp_path / "a.yaml").write_text(text.replace("*0", "*a"))

    with pytest.raises(ManifestsUnreadable) as raised:
        read_manifests([str(tmp_path)], io.StringIO())

    assert str(raised.value).startswith(f"{tmp_path}/{place}")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_anchors_and_merge_keys_are_understood() -> None:
    text = """
    apiVersion: v1
    kind: List
    items:
    - &one
      apiVersion: v1
      kind: Pod
      metadata: &metadata {name: a}
    - <<: *one
      metadata: {<<: *metadata, name: b}
    """

    assert read(text) == {"Pod default/a", "Pod default/b"}


def test_many_findings_that_are_alike_are_one_in_the_report() -> None:
    pods = "\n---\n".join(
        POD.replace("name: a", f"name: p{number}, labels: {{role-name: prefill}}")
        for number in range(8)
    )
    diagnosis = diagnose(read_manifests(["-"], io.StringIO(pods)))

    text = render_text(diagnosis)
    assert "error: Pod default/p0 and 7 more  [pod-without-model]" in text
    assert "Pod default/p1, Pod default/p2" in text
    assert "and 2 more" in text
    assert "1 error, 0 warnings" in text
    (finding,) = json.loads(render_json(diagnosis))["findings"]
    assert [each["name"] for each in finding["objects"]] == [f"p{n}" for n in range(8)]
