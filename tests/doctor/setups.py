"""Installations that are healthy, and ways to break them."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdrouter.tools.doctor.diagnosis import Diagnosis, diagnose
from pdrouter.tools.doctor.snapshot import Document, Snapshot

Documents = list[dict[str, Any]]
Change = Callable[[Documents], None]


@dataclass(frozen=True)
class Case:
    """A way to break a healthy installation.

    Attributes:
        code: what is to be found.
        where: objects in which it is to be found.
        changes: what breaks it.
        setup: the healthy installation.
        also: what else is found then.
        words: what problem or fix say, among other things.
    """

    code: str
    where: str
    changes: list[Change]
    setup: str = "endpoint_override"
    also: set[str] = field(default_factory=set)
    words: str = ""

    @property
    def expected(self) -> tuple[str, set[str]]:
        """What `judge` is to return."""
        return self.where, {self.code} | self.also

    def judge(self) -> tuple[str, set[str]]:
        """The objects in which it is found, and all that is found.

        Every finding says where it is and what to do.
        """
        documents = original_dst() if self.setup == "original_dst" else endpoint_override()
        diagnosis = examine(documents, *self.changes)
        for finding in diagnosis.findings:
            assert all((finding.defect.field, finding.defect.problem, finding.defect.fix))
        defects = [
            defect
            for finding in diagnosis.findings
            if finding.check.code == self.code
            for defect in finding.defects
        ]
        for defect in defects[:1]:
            assert self.words in f"{defect.problem} {defect.fix}"
        return ", ".join(sorted({str(defect.object) for defect in defects})), codes(diagnosis)


_DATA = Path(__file__).with_name("data")


def endpoint_override() -> Documents:
    """A healthy installation in which Envoy finds the pod by endpointOverride."""
    return _read("router.yaml") + _read("gateway.yaml") + _read("endpoint-override.yaml")


def original_dst() -> Documents:
    """A healthy installation in which Envoy connects to the address in `target-pod`."""
    return _read("router.yaml") + _read("gateway.yaml") + _read("original-dst.yaml")


def _read(name: str) -> Documents:
    return list(yaml.safe_load_all((_DATA / name).read_text()))


def find(documents: Documents, name: str) -> dict[str, Any]:
    """The object called `Kind/name`, or the only one of the kind."""
    kind, _, own = name.partition("/")
    (found,) = (
        document
        for document in documents
        if document["kind"] == kind and own in ("", document["metadata"]["name"])
    )
    return found


def put(name: str, path: str, value: Any) -> Change:
    """Set a field, named by keys and indexes with spaces between."""

    def change(documents: Documents) -> None:
        parent, key = _walk(find(documents, name), path)
        if isinstance(parent, list) and key == len(parent):
            parent.append(value)
        else:
            parent[key] = value

    return change


def drop(name: str, path: str = "") -> Change:
    """Remove a field, or a whole object."""

    def change(documents: Documents) -> None:
        if not path:
            documents.remove(find(documents, name))
            return
        parent, key = _walk(find(documents, name), path)
        del parent[key]

    return change


def add(manifest: str) -> Change:
    """Add objects."""

    def change(documents: Documents) -> None:
        documents += yaml.safe_load_all(textwrap.dedent(manifest))

    return change


def setting(name: str, value: str) -> Change:
    """Set a variable of the router."""

    def change(documents: Documents) -> None:
        container = find(documents, "Deployment/router")["spec"]["template"]["spec"]["containers"][
            0
        ]
        others = [variable for variable in container["env"] if variable["name"] != name]
        container["env"] = [*others, {"name": name, "value": value}]

    return change


def accept(document: dict[str, Any]) -> dict[str, Any]:
    """The status that a controller gives to an object which it has put into effect."""
    conditions = [
        {"type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": 1}
        for kind in ("Accepted", "Programmed", "ResolvedRefs")
    ]
    whom = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "llm"}
    match document["kind"]:
        case "GatewayClass":
            return {"conditions": conditions}
        case "Gateway":
            return {
                "conditions": conditions,
                "listeners": [{"name": "http", "conditions": conditions}],
            }
        case "HTTPRoute":
            return {"parents": [{"parentRef": whom, "conditions": conditions}]}
        case kind if kind.endswith("Policy"):
            return {"ancestors": [{"ancestorRef": whom, "conditions": conditions}]}
        case _:
            return {}


def examine(documents: Documents, *changes: Change) -> Diagnosis:
    """The diagnosis of an installation, after changes."""
    for change in changes:
        change(documents)
    return diagnose(Snapshot.build(map(Document, documents)))


def codes(diagnosis: Diagnosis) -> set[str]:
    """What was found."""
    return {finding.check.code for finding in diagnosis.findings}


def _walk(thing: Any, path: str) -> tuple[Any, str | int]:
    keys: list[str | int] = [int(key) if key.isdecimal() else key for key in path.split()]
    for key in keys[:-1]:
        thing = thing.setdefault(key, {}) if isinstance(thing, dict) else thing[key]
    return thing, keys[-1]
