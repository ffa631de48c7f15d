"""The few objects that kubectl's own generators send as Protobuf (`kubectl create namespace`)."""

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from .failures import ApiError
from .objects import Json

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_MAGIC = b"k8s\x00"
_Read: TypeAlias = Callable[[bytes], Any]


def decode_object(body: bytes) -> Json:
    """The object in a request body.

    Raises:
        ApiError: 415 if it is of a kind that is not known in this form, 400 if it is malformed.
    """
    try:
        return _decode(body)
    except (IndexError, UnicodeDecodeError) as error:
        raise ApiError.bad_request("the object provided is unrecognized") from error


def _decode(body: bytes) -> Json:
    if not body.startswith(_MAGIC):
        raise ApiError.bad_request("the object provided is unrecognized")
    envelope = dict(_fields(body[len(_MAGIC) :]))
    type_meta = {1: ("apiVersion", _text), 2: ("kind", _text)}
    manifest = _message(type_meta)(envelope[1])
    schema = _SCHEMAS.get(manifest.get("kind", ""))
    if schema is None:
        raise ApiError(415, f"{manifest.get('kind')} objects are not understood as Protobuf")
    return {**manifest, **_message(schema)(envelope[2])}


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message, by number; others are skipped."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        size, position = _varint(data, position)
        if tag & 7 == 2:
            yield tag >> 3, data[position : position + size]
            position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _text(data: bytes) -> str:
    return data.decode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _entry(read: _Read) -> _Read:
    """Reads one entry of a map."""

    def entry(data: bytes) -> dict[str, Any]:
        members = dict(_fields(data))
        return {members.get(1, b"").decode(): read(members.get(2, b""))}

    return entry


def _message(schema: Mapping[int, tuple[str, _Read]]) -> _Read:
    """Reads a message; members that are empty are left out, entries of a map are joined."""

    def message(data: bytes) -> Json:
        members: Json = {}
        for number, content in _fields(data):
            if number not in schema:
                continue
            name, read = schema[number]
            if value := read(content):
                earlier = members.get(name)
                members[name] = {**earlier, **value} if isinstance(earlier, dict) else value
        return members

    return message


_METADATA = {
    1: ("name", _text),
    2: ("generateName", _text),
    3: ("namespace", _text),
    11: ("labels", _entry(_text)),
    12: ("annotations", _entry(_text)),
}
_ANY = {1: ("metadata", _message(_METADATA))}
_SCHEMAS: dict[str, dict[int, tuple[str, _Read]]] = {
    "Namespace": _ANY,
    "ServiceAccount": _ANY,
    "ConfigMap": {**_ANY, 2: ("data", _entry(_text)), 3: ("binaryData", _entry(_base64))},
    "Secret": {
        **_ANY,
        2: ("data", _entry(_base64)),
        3: ("type", _text),
        4: ("stringData", _entry(_text)),
    },
}
