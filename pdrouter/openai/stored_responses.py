"""What engines keep for later requests: answers of `/v1/responses`, and the paths to them."""

import re
from functools import lru_cache
from hashlib import blake2b
from secrets import token_hex
from typing import NamedTuple

from pdrouter.openai.body import Body, encode
from pdrouter.openai.coercion import as_boolean, decode_scalar
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.request import RESPONSE_ID, InferenceRequest

PREVIOUS = "previous_response_id"

_PREFIX = "resp_"
_TAG = 12
_NONCE = 28
_CHECK = 8
_OURS = re.compile(rf"{_PREFIX}([0-9a-f]{{{_TAG}}})([0-9a-f]{{{_NONCE}}})([0-9a-f]{{{_CHECK}}})")

_PATH = re.compile(r"/v1/responses/([\w-]{1,256})(|/cancel|/input_items)", re.ASCII)
_MOST_TAGS = 16_384
"""Pods whose tags are kept: they are looked up whenever any pod changes."""
_METHODS = {"": ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)}


class StoredPath(NamedTuple):
    """A path that leads to an answer that an engine keeps.

    Attributes:
        response_id: which one.
        methods: what may be done with it there.
    """

    response_id: str
    methods: tuple[str, ...]


def parse_stored_path(path: str, method: str) -> StoredPath | None:
    """Return where a path leads; None if that is to no kept answer.

    Nothing passes that an engine, or a proxy before it, could take for another path. What is
    posted below `/v1/responses` to something that is no id is another matter.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    methods = _METHODS[found[2]]
    if method not in methods and not found[1].startswith(_PREFIX):
        return None
    return StoredPath(found[1], methods)


def is_kept(request: InferenceRequest) -> bool:
    """Return whether the engine keeps the answer to a request, for later ones."""
    if not request.endpoint.stateful:
        return False
    body = request.body
    return as_boolean(_read(body, "store", default=True)) is not False or (
        as_boolean(_read(body, "background", default=False)) is not False
    )


def read_previous(request: InferenceRequest) -> str:
    """Return the id of the answer that a request goes on with; empty for none."""
    if not request.endpoint.stateful:
        return ""
    value = _read(request.body, PREVIOUS, default="")
    return value if isinstance(value, str) else ""


def create_response_id(holder: str, owner: str) -> str:
    """Return a new id for an answer, which tells any router who keeps it.

    The rest of it is random, so that nobody guesses one.

    Args:
        holder: UID of the pod.
        owner: the name of the user who asks; empty for nobody in particular.
    """
    begun = tag_holder(holder) + token_hex(_NONCE // 2)
    return f"{_PREFIX}{begun}{_sign(begun, owner)}"


def name_response(request: InferenceRequest, holder: str, owner: str) -> InferenceRequest:
    """Return a request whose answer, if it is kept, gets a new id that tells who keeps it."""
    if not is_kept(request):
        return request
    response_id = create_response_id(holder, owner)
    return request.with_edits({**request.edits, RESPONSE_ID: encode(response_id)})


def read_tag(response_id: str, owner: str) -> str | None:
    """Return the tag of the pod that keeps an answer; None if no router has made the id.

    Empty if it was made for somebody else: nobody keeps it for this one.
    """
    ours = _OURS.fullmatch(response_id)
    if ours is None:
        return None
    return ours[1] if ours[3] == _sign(ours[1] + ours[2], owner) else ""


@lru_cache(maxsize=_MOST_TAGS)
def tag_holder(uid: str) -> str:
    """Return what stands for a pod in ids: it does not tell its name or address."""
    return blake2b(uid.encode(), digest_size=_TAG // 2, person=b"pdrouter-holder").hexdigest()


def unknown_response(response_id: str) -> RequestRejected:
    """Return the error for an answer that nobody keeps."""
    message = f"Response with id '{response_id[:256]}' not found."
    return RequestRejected(404, "response_not_found", message, "response_id")


def unknown_previous(response_id: str) -> RequestRejected:
    """Return the error for a request that goes on with an answer that nobody keeps.

    OpenAI's own: clients that know it send the whole conversation instead.
    """
    message = f"Previous response with id '{response_id[:256]}' not found."
    return RequestRejected(400, "previous_response_not_found", message, PREVIOUS)


def _read(body: Body, name: str, *, default: object) -> object:
    raw = body.raw(name)
    value = None if raw is None else decode_scalar(raw)
    return default if value is None else value


def _sign(begun: str, owner: str) -> str:
    data = f"{begun}\0{owner}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=_CHECK // 2).hexdigest()
