"""The list of models, as `GET /v1/models` shows it."""

from collections.abc import Iterable
from typing import Any

import msgspec


def encode_models(names: Iterable[str]) -> bytes:
    """Return the body of `GET /v1/models`, in alphabetical order."""
    cards = [_describe_model(name) for name in sorted(names)]
    return msgspec.json.encode({"object": "list", "data": cards})


def encode_model(name: str) -> bytes:
    """Return the body of `GET /v1/models/{name}`."""
    return msgspec.json.encode(_describe_model(name))


def _describe_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "pdrouter"}
