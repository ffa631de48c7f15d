"""Requests for objects: from a parsed call to the response."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import msgspec
import yaml
from aiohttp import web

from .calls import Call
from .failures import ApiError
from .kinds import Kind
from .listing import read_page
from .objects import Json, Key, Stored
from .patches import json_patch, merge_patch, strategic_merge_patch
from .protobuf_bodies import CONTENT_TYPE as PROTOBUF
from .protobuf_bodies import decode_object
from .representations import Form, encode_list, encode_object
from .store import Store

APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"

_T = TypeVar("_T")
_Change: TypeAlias = Callable[[Json], Json]


class ResourceApi:
    """Reads and writes of one store over HTTP; watches are elsewhere.

    Args:
        store: the objects.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answer(self, request: web.BaseRequest, call: Call, kind: Kind) -> web.Response:
        """Do what a request asks for.

        Raises:
            ApiError: it is refused.
        """
        query = request.rel_url.query
        if query.get("dryRun"):
            raise ApiError.bad_request("the fake API server has no dry run")
        body, content_type = await request.read(), request.content_type
        form = Form.accepted(request.headers.get("Accept", ""))
        include = query.get("includeObject", "Metadata")
        if call.subresource == "scale" and kind.plural == "deployments":
            return self._scale(call, kind, body, content_type)
        if call.subresource not in ("", "status"):
            raise ApiError(404, "the server could not find the requested resource")
        match call.verb:
            case "list":
                page = read_page(self._store, kind, call.namespace, query)
                return _respond(encode_list(kind, page.items, form, page.metadata, include))
            case "get":
                stored = self._store.find(kind, call.key)
            case "create":
                stored = self._create(call, kind, _parse(body, content_type))
                return _respond(encode_object(stored, form, include), 201)
            case "patch" if content_type == APPLY and not self._has(kind, call.key):
                manifest: Json = {"metadata": {"name": call.name}}
                stored = self._create(call, kind, _change(kind, body, APPLY)(manifest))
                return _respond(encode_object(stored, form, include), 201)
            case "update" | "patch":
                change = _restrict(call.subresource, _change(kind, body, content_type))
                stored = self._store.update(kind, call.key, change)
            case "delete":
                return self._delete(call, kind, _delete_options(request, body))
            case "deletecollection":
                for stored in read_page(self._store, kind, call.namespace, query).items:
                    self._store.end(stored, _delete_options(request, body)["gracePeriodSeconds"])
                return _respond(_success(kind))
            case _:
                raise ApiError(405, "the server does not allow this method on the resource")
        return _respond(encode_object(stored, form, include))

    def _has(self, kind: Kind, key: Key) -> bool:
        try:
            self._store.find(kind, key)
        except ApiError:
            return False
        return True

    def _create(self, call: Call, kind: Kind, manifest: Json) -> Stored:
        stated = (manifest.get("apiVersion"), manifest.get("kind"))
        if stated != (kind.api_version, kind.name):
            raise ApiError.bad_request(
                f"{stated[1]} in version {stated[0]!r} cannot be handled as a {kind.name}"
            )
        if kind.namespaced:
            self._check_namespace(call.namespace or "", manifest.setdefault("metadata", {}))
        # Status is written through its subresource only.
        manifest.pop("status", None)
        if kind.name in _FIRST_STATUS:
            manifest["status"] = _FIRST_STATUS[kind.name]
        created = self._store.create(manifest)["metadata"]
        return self._store.find(kind, (created.get("namespace", ""), created["name"]))

    def _check_namespace(self, namespace: str, metadata: Json) -> None:
        """An object goes where its path says, and only into a namespace that exists."""
        if metadata.setdefault("namespace", namespace) != namespace:
            raise ApiError.bad_request(
                "the namespace of the provided object does not match the namespace sent on the"
                " request"
            )
        self._store.find(self._store.kinds.of_plural("namespaces"), ("", namespace))

    def _scale(self, call: Call, kind: Kind, body: bytes, content_type: str) -> web.Response:
        stored = self._store.find(kind, call.key)
        if call.verb in ("update", "patch"):
            wanted = _change(kind, body, content_type)(_scale_of(stored.decode()))
            patch = {"spec": {"replicas": wanted["spec"]["replicas"]}}
            stored = self._store.update(kind, call.key, lambda now: merge_patch(now, patch))
        return _respond(msgspec.json.encode(_scale_of(stored.decode())))

    def _delete(self, call: Call, kind: Kind, options: Json) -> web.Response:
        stored = self._store.find(kind, call.key)
        wanted = options.get("preconditions") or {}
        actual = {"uid": stored.uid, "resourceVersion": str(stored.resource_version)}
        for name in wanted.keys() & actual.keys():
            if wanted[name] != actual[name]:
                raise ApiError.conflict(
                    kind.qualified,
                    stored.key[1],
                    f"Precondition failed: {name} in precondition: {wanted[name]}, in object meta:"
                    f" {actual[name]}",
                )
        ended = self._store.end(stored, options["gracePeriodSeconds"])
        if kind.name == "Pod" or self._has(kind, call.key):
            return _respond(ended.typed_body)
        return _respond(_success(kind, ended))


_FIRST_STATUS: dict[str, Json] = {
    "Namespace": {"phase": "Active"},
    "Pod": {"phase": "Pending", "qosClass": "BestEffort"},
}
"""What the server itself writes into the status of a new object."""


def _parse(body: bytes, content_type: str) -> Json:
    return decode_object(body) if content_type == PROTOBUF else _parse_json(body, Json)


def _parse_json(body: bytes, expected: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=expected)
    except msgspec.MsgspecError as error:
        raise ApiError.bad_request(f"the object provided is unrecognized: {error}") from error


def _parse_yaml(body: bytes) -> Any:
    try:
        return yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise ApiError.bad_request(f"error decoding YAML: {error}") from error


def _respond(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _change(kind: Kind, body: bytes, content_type: str) -> _Change:
    """What the body of a write makes of an object.

    Raises:
        ApiError: 400 if the body cannot be parsed, 415 if its format is not for this kind.
    """
    if content_type == JSON_PATCH:
        operations = _parse_json(body, list[Json])
        return lambda current: json_patch(current, operations)
    if content_type == APPLY:
        patch = _parse_yaml(body)
        return lambda current: strategic_merge_patch(current, patch)
    if content_type == STRATEGIC_MERGE_PATCH and kind.custom:
        supported = ", ".join((JSON_PATCH, MERGE_PATCH, APPLY))
        raise ApiError(
            415,
            "the body of the request was in an unknown format - accepted media types include: "
            + supported,
        )
    members = _parse(body, content_type)
    if content_type == STRATEGIC_MERGE_PATCH:
        return lambda current: strategic_merge_patch(current, members)
    if content_type == MERGE_PATCH:
        return lambda current: merge_patch(current, members)
    return lambda _: members


def _restrict(subresource: str, change: _Change) -> _Change:
    """Confine a change to what the path stands for: the status, or everything else."""

    def restricted(current: Json) -> Json:
        before = msgspec.json.decode(msgspec.json.encode(current))
        after = change(current)
        if subresource == "status":
            stated = after.get("metadata", {})
            based_on = {name: stated[name] for name in ("resourceVersion", "uid") if name in stated}
            return {
                **before,
                "metadata": {**before["metadata"], **based_on},
                "status": after.get("status", {}),
            }
        kept = {"status": before["status"]} if "status" in before else {}
        return {**{name: after[name] for name in after if name != "status"}, **kept}

    return restricted


def _delete_options(request: web.BaseRequest, body: bytes) -> Json:
    """The options of a deletion; its grace period may also stand in the query."""
    options = _parse(body or b"{}", request.content_type)
    text = request.rel_url.query.get("gracePeriodSeconds")
    options.setdefault("gracePeriodSeconds", None if text is None else int(text))
    return options


def _success(kind: Kind, ended: Stored | None = None) -> bytes:
    details: Json = {"kind": kind.plural, **({"group": kind.group} if kind.group else {})}
    if ended is not None:
        details |= {"name": ended.key[1], "uid": ended.uid}
    return msgspec.json.encode(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": details,
        }
    )


def _scale_of(deployment: Json) -> Json:
    metadata, spec = deployment["metadata"], deployment["spec"]
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: metadata[name] for name in names},
        "spec": {"replicas": spec.get("replicas", 1)},
        "status": {"replicas": deployment.get("status", {}).get("replicas", 0)},
    }
