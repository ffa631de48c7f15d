"""Installations that are healthy, and ways to break them."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pdrouter.doctor.diagnosis import Diagnosis, diagnose
from pdrouter.doctor.snapshot import Snapshot

Documents = list[dict[str, Any]]
Change = Callable[[Documents], None]

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


def examine(documents: Documents, *changes: Change) -> Diagnosis:
    """The diagnosis of an installation, after changes."""
    for change in changes:
        change(documents)
    return diagnose(Snapshot.build(documents))


def codes(diagnosis: Diagnosis) -> set[str]:
    """What was found."""
    return {finding.check.code for finding in diagnosis.findings}


def _walk(thing: Any, path: str) -> tuple[Any, str | int]:
    keys: list[str | int] = [int(key) if key.isdecimal() else key for key in path.split()]
    for key in keys[:-1]:
        thing = thing.setdefault(key, {}) if isinstance(thing, dict) else thing[key]
    return thing, keys[-1]
