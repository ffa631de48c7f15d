"""The forms in which an object is sent: as it is, as a table row, or by its metadata alone."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from .kinds import Kind
from .objects import Json, Stored
from .tables import column_definitions, table_cells

_META = "meta.k8s.io/v1"


class Form(Enum):
    """What a client asked for in its `Accept` header."""

    FULL = ""
    TABLE = "Table"
    METADATA = "PartialObjectMetadata"
    METADATA_LIST = "PartialObjectMetadataList"

    @classmethod
    def accepted(cls, header: str) -> "Form":
        """The first form of an `Accept` header that the server has."""
        for media_range in header.split(","):
            media_type, *parameters = (part.strip() for part in media_range.split(";"))
            wanted = dict(parameter.partition("=")[::2] for parameter in parameters)
            if media_type not in ("application/json", "*/*"):
                continue
            if wanted.get("g", "meta.k8s.io") != "meta.k8s.io" or wanted.get("v", "v1") != "v1":
                continue
            if wanted.get("as", "") in [form.value for form in cls]:
                return cls(wanted.get("as", ""))
        return cls.FULL


def encode_object(
    stored: Stored, form: Form, include: str = "Metadata", *, with_columns: bool = True
) -> bytes:
    """One object.

    Args:
        stored: the object.
        form: what the client asked for.
        include: what a table row carries beside its cells: `Metadata`, `Object` or `None`.
        with_columns: whether a table describes its columns: in a watch the first event does.
    """
    if form is Form.FULL:
        return stored.typed_body
    if form is Form.TABLE:
        metadata = {"resourceVersion": str(stored.resource_version)}
        return _encode_table(stored.kind, [stored], metadata, include, with_columns=with_columns)
    return msgspec.json.encode(_metadata_only(stored.decode()))


def encode_list(
    kind: Kind, items: Sequence[Stored], form: Form, metadata: Json, include: str = "Metadata"
) -> bytes:
    """A list of objects with this list metadata; see `encode_object`."""
    if form is Form.TABLE:
        return _encode_table(kind, items, metadata, include)
    if form is Form.FULL:
        head = {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata}
        bodies = b",".join([stored.listed_body for stored in items])
        return msgspec.json.encode(head)[:-1] + b',"items":[' + bodies + b"]}\n"
    return msgspec.json.encode(
        {
            "kind": "PartialObjectMetadataList",
            "apiVersion": _META,
            "metadata": metadata,
            "items": [_metadata_only(stored.decode()) for stored in items],
        }
    )


def encode_bookmark(
    kind: Kind, form: Form, resource_version: int, annotations: dict[str, str]
) -> bytes:
    """The object of a bookmark event: nothing but a version."""
    metadata = {
        "resourceVersion": str(resource_version),
        "creationTimestamp": None,
        **({"annotations": annotations} if annotations else {}),
    }
    bookmark: Json = {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata}
    if form is Form.TABLE:
        row = {"cells": [], "object": _metadata_only(bookmark)}
        return msgspec.json.encode(
            {"kind": "Table", "apiVersion": _META, "metadata": metadata, "rows": [row]}
        )
    if form is not Form.FULL:
        return msgspec.json.encode(_metadata_only(bookmark))
    if kind.name == "Pod":
        bookmark |= {"spec": {"containers": None}, "status": {}}
    return msgspec.json.encode(bookmark)


def _encode_table(
    kind: Kind,
    items: Sequence[Stored],
    metadata: Json,
    include: str,
    *,
    with_columns: bool = True,
) -> bytes:
    rows = []
    for stored in items:
        manifest = stored.decode()
        row: Json = {"cells": table_cells(kind, manifest)}
        if include != "None":
            row["object"] = manifest if include == "Object" else _metadata_only(manifest)
        rows.append(row)
    table: dict[str, Any] = {
        "kind": "Table",
        "apiVersion": _META,
        "metadata": metadata,
        "columnDefinitions": column_definitions(kind) if with_columns else None,
        "rows": rows,
    }
    return msgspec.json.encode(table)


def _metadata_only(manifest: Json) -> Json:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": _META,
        "metadata": manifest["metadata"],
    }
