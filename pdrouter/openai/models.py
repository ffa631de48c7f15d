"""The list of models, as `GET /v1/models` shows it."""

from collections.abc import Collection, Iterable
from heapq import nsmallest
from typing import Any

import msgspec

from pdrouter.openai.errors import RequestRejected

_NAMED = 10
_NAME_LENGTH = 200


def encode_models(names: Iterable[str]) -> bytes:
    """Return the body of `GET /v1/models`, in alphabetical order."""
    cards = [_describe_model(name) for name in sorted(names)]
    return msgspec.json.encode({"object": "list", "data": cards})


def encode_model(name: str) -> bytes:
    """Return the body of `GET /v1/models/{name}`."""
    return msgspec.json.encode(_describe_model(name))


def unknown_model(name: str, served: Collection[str]) -> RequestRejected:
    """Return the error for a model that is not served, with some of those that are."""
    message = f"model {name[:_NAME_LENGTH]!r} does not exist"
    named = [repr(each[:_NAME_LENGTH]) for each in nsmallest(_NAMED, served)]
    if not named:
        message += "; no model is served"
    elif len(served) > _NAMED:
        message += f"; served are {', '.join(named)} and {len(served) - _NAMED} more"
    else:
        message += f"; served: {', '.join(named)}"
    return RequestRejected(404, "model_not_found", message, "model")


def unsupported_model(name: str, reason: str) -> RequestRejected:
    """Return the error for a model that is known, but that the router cannot speak to."""
    message = f"model {name[:_NAME_LENGTH]!r} cannot be served: {reason}"
    return RequestRejected(503, "model_unsupported", message)


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "pdrouter"}
