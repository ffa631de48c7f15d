"""Pages of a list, and the versions that a list may be asked for."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .failures import ApiError
from .kinds import Kind
from .objects import Json, Key, Stored
from .selectors import SELECTABLE_FIELDS, parse_field_selector, parse_label_selector
from .store import Store

_NO_VERSION = ("", "0")
_INCONSISTENT = -1


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list.

    Attributes:
        items: the objects of this page.
        metadata: of the list: its version and where the next page starts.
    """

    items: list[Stored]
    metadata: Json


def parse_version(text: str) -> int:
    """A resource version; empty is 0.

    Raises:
        ApiError: 500 if it is no number, as a real server says.
    """
    try:
        version = int(text or 0)
    except ValueError:
        version = -1
    if version < 0:
        raise ApiError(
            500,
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}":'
            " invalid syntax",
        )
    return version


def parse_count(query: Mapping[str, str], name: str) -> int:
    """A number in the query; absent is 0.

    Raises:
        ApiError: 400 if it is no number.
    """
    text = query.get(name) or "0"
    if not text.isdecimal():
        raise ApiError.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def selection(kind: Kind, query: Mapping[str, str]) -> Callable[[Stored], bool]:
    """Whether an object satisfies the selectors of a request.

    Raises:
        ApiError: 400 if a selector cannot be parsed.
    """
    allowed = SELECTABLE_FIELDS if kind.name == "Pod" else SELECTABLE_FIELDS[:2]
    labels = parse_label_selector(query.get("labelSelector", ""))
    fields = parse_field_selector(query.get("fieldSelector", ""), frozenset(allowed))
    return lambda stored: labels(stored.labels) and fields(stored.fields)


def read_page(store: Store, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> Page:
    """Answer a list request.

    Raises:
        ApiError: 400 for parameters that contradict each other, 410 for a version or a continue
            token whose state was compacted away, 504 for a version that is yet to come.
    """
    matches = selection(kind, query)
    limit = parse_count(query, "limit")
    if token := query.get("continue"):
        if query.get("resourceVersion", "") not in _NO_VERSION:
            raise ApiError.bad_request(
                "specifying resource version is not allowed when using continue"
            )
        version, after = _decode_token(token)
        if version == _INCONSISTENT:
            version = store.resource_version
        elif version < store.history.compacted:
            raise ApiError.expired_continue(_encode_token(_INCONSISTENT, after))
        found = store.select(kind, namespace=namespace, matches=matches, at=version)
        found = [stored for stored in found if stored.key > after]
    else:
        version = _version_to_list(store, query, limit)
        found = store.select(kind, namespace=namespace, matches=matches, at=version)
        if query.get("resourceVersion") == "0":
            # The watch cache answers these, and it has no pages.
            limit = 0
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if limit and len(found) > limit:
        metadata["continue"] = _encode_token(version, found[limit - 1].key)
        if not query.get("labelSelector") and not query.get("fieldSelector"):
            metadata["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    return Page(found, metadata)


def _version_to_list(store: Store, query: Mapping[str, str], limit: int) -> int:
    """The version whose state answers a list that begins."""
    text, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    asked = parse_version(text)
    if match and not text:
        raise ApiError.bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless"
            " resourceVersion is provided"
        )
    if match not in ("", "Exact", "NotOlderThan"):
        raise ApiError.bad_request(f'resourceVersionMatch: Unsupported value: "{match}"')
    if match == "Exact" and not asked:
        raise ApiError.bad_request(
            'resourceVersionMatch: Forbidden: resourceVersionMatch "Exact" is forbidden for'
            ' resourceVersion "0"'
        )
    now = store.resource_version
    if asked > now:
        raise ApiError(504, f"Too large resource version: {asked}, current: {now}", retry_after=1)
    exact = match == "Exact" or (not match and asked and limit)
    return asked if exact else now


def _encode_token(version: int, after: Key) -> str:
    token = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": version, "start": after})
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def _decode_token(token: str) -> tuple[int, Key]:
    padded = token + "=" * (-len(token) % 4)
    try:
        members = msgspec.json.decode(base64.urlsafe_b64decode(padded))
        namespace, name = members["start"]
        return int(members["rv"]), (namespace, name)
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise ApiError.bad_request("continue key is not valid") from error
