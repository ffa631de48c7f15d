"""Objects as the store keeps them: one immutable encoding for each version of an object."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import msgspec

from .kinds import Kind

Json: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""Namespace (empty for a kind without) and name: the order of lists."""


def timestamp(later: float = 0) -> str:
    """The time in so many seconds, as the API writes it."""
    moment = datetime.now(UTC) + timedelta(seconds=later)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object.

    Attributes:
        kind: its kind.
        key: its namespace and name.
        uid: its identity.
        resource_version: the write that made this version.
        labels: its labels.
        fields: what field selectors may ask for.
        body: its JSON without `apiVersion` and `kind`, as it stands in lists of built-in kinds.
    """

    kind: Kind
    key: Key
    uid: str
    resource_version: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    body: bytes

    @classmethod
    def encode(cls, kind: Kind, manifest: Json, resource_version: int) -> "Stored":
        """Keep a manifest with complete metadata as the version that a write makes."""
        metadata = {**manifest["metadata"], "resourceVersion": str(resource_version)}
        members = {
            name: value
            for name, value in manifest.items()
            if name not in ("apiVersion", "kind", "metadata")
        }
        return cls(
            kind=kind,
            key=(metadata.get("namespace", ""), metadata["name"]),
            uid=metadata["uid"],
            resource_version=resource_version,
            labels=dict(metadata.get("labels") or {}),
            fields=_selectable_fields(manifest),
            body=msgspec.json.encode({"metadata": metadata, **members}),
        )

    @property
    def typed_body(self) -> bytes:
        """Its JSON, complete."""
        start = f'{{"apiVersion":"{self.kind.api_version}","kind":"{self.kind.name}",'
        return start.encode() + self.body[1:]

    @property
    def listed_body(self) -> bytes:
        """Its JSON as an item of a list: a real server omits the type of built-in kinds there."""
        return self.typed_body if self.kind.custom else self.body

    def decode(self) -> Json:
        """The object as a dict of the caller's own."""
        members: Json = msgspec.json.decode(self.body)
        return {"apiVersion": self.kind.api_version, "kind": self.kind.name, **members}

    def as_deleted(self, resource_version: int) -> "Stored":
        """The last state of an object, with the version of its removal."""
        return Stored.encode(self.kind, self.decode(), resource_version)


@dataclass(frozen=True, slots=True)
class Change:
    """One write.

    Attributes:
        type: as watch events say it.
        stored: the object after the write; for a removal its last state.
        previous: the object before the write; None for a creation.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    stored: Stored
    previous: Stored | None

    @property
    def resource_version(self) -> int:
        """The version of the write."""
        return self.stored.resource_version


def _selectable_fields(manifest: Json) -> dict[str, str]:
    metadata = manifest["metadata"]
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    return {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "spec.nodeName": str(spec.get("nodeName", "")),
        "status.phase": str(status.get("phase", "")),
        "status.podIP": str(status.get("podIP", "")),
    }
