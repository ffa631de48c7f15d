"""What session a request belongs to, by what its client says of it."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import msgspec

from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.header_values import read_one
from pdrouter.openai.headers import SESSION_ID
from pdrouter.openai.request import InferenceRequest

LONGEST_KEY = 256
"""Bytes of a key; a longer one stands for its digest, so that any length costs the same."""

_MEMBER = "body."
_CONVERSATION = "conversation"
_MAX_ADDRESS = 64
_MAX_VALUE = 16_384
"""Bytes of a member that is looked into: clients have reason to send fewer."""


class Session(msgspec.Struct, frozen=True):
    """What requests have in common that are better served by one pod.

    Attributes:
        key: what names it.
        source: where that was said, as in `PDROUTER_SESSION_KEYS`.
        address: `ip:port` of the pod that the client says has served it; empty if it says none.
        bound: whether no other pod will do, however much the session's has to do.
    """

    key: str
    source: str
    address: str = ""
    bound: bool = False


def read_session(
    request: InferenceRequest, headers: Mapping[str, str], names: Sequence[str]
) -> Session | None:
    """Return the session of a request; None if it names none.

    Args:
        request: the request.
        headers: the client's headers.
        names: headers and members that may name it, the first of them before the others.
    """
    body = request.body
    if request.endpoint.stateful and (key := _read_member(body, _CONVERSATION)):
        # What engines know of a conversation, only one of them knows.
        return Session(_shorten(key), _MEMBER + _CONVERSATION, bound=True)
    roots = _list_roots(tuple(names))
    if headers.keys().isdisjoint(names) and roots.isdisjoint(body.names):
        return None
    named: Session | None = None
    for name in names:
        if name.startswith(_MEMBER):
            key = _read_member(body, name.removeprefix(_MEMBER))
        else:
            key = read_one(headers.get(name, ""))
        if not key:
            continue
        if named is not None:
            return Session(_shorten(key), name, named.address)
        address = _read_address(key) if name == SESSION_ID else ""
        session = Session(_shorten(key), name, address)
        if not address:
            return session
        # Should the pod be gone, another key of the session says more than its address.
        named = session
    return named


@lru_cache(maxsize=16)
def _list_roots(names: tuple[str, ...]) -> frozenset[str]:
    """Return the members of bodies that may hold a key, by what names keys: a router has one."""
    members = (name.removeprefix(_MEMBER) for name in names if name.startswith(_MEMBER))
    return frozenset(member.partition(".")[0] for member in members)


def write_session_id(address: str) -> str:
    """Return what `x-session-id` says of a pod, as aibrix writes it."""
    return base64.b64encode(address.encode()).decode()


def _read_address(text: str) -> str:
    """Return the address that `x-session-id` says in aibrix; nothing if it says none."""
    if len(text) > _MAX_ADDRESS * 2:
        return ""
    try:
        address = base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
    host, colon, port = address.rpartition(":")
    return address if colon and host and port.isdecimal() else ""


def _read_member(body: Body, path: str) -> str:
    """Return a text or a whole number as text; of an object, its `id`. Nothing for any other."""
    name, _, inner = path.partition(".")
    start, end = body.span(name)
    if not 0 < end - start <= _MAX_VALUE:
        return ""
    raw: bytes | None = body.data[start:end]
    if raw is not None and raw.startswith(b"{"):
        try:
            raw = Body(raw).raw(inner or "id")
        except BodyInvalid:
            return ""
    elif inner:
        return ""
    if raw is None:
        return ""
    try:
        value = msgspec.json.decode(raw, type=str | int)
    except msgspec.MsgspecError:
        return ""
    return str(value).strip()


def _shorten(key: str) -> str:
    data = key.encode("utf-8", "surrogatepass")
    return key if len(data) <= LONGEST_KEY else blake2b(data, digest_size=32).hexdigest()
