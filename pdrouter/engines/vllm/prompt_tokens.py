"""The ids of a prompt's tokens, which decode takes from prefill instead of tokenising again.

vLLM's prefill engine says them in its answer to a chat where it is asked to (`return_token_ids`);
from vllm#48145 on, decode reads them in `kv_transfer_params` before the request gets to the
scheduler. Older engines pass over both.
"""

import re

import msgspec

from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

ASK = "return_token_ids"
_NAME = b'"prompt_token_ids"'
_PATH = "/v1/chat/completions"
"""Where answers have them at the top, and decode engines look for them."""
_FIRST = re.compile(rb"\[[ \t\r\n]*[0-9]")
_OF_A_LIST = b"0123456789, \t\r\n"
_BYTES_PER_TOKEN = 8
"""Digits of an id and its comma; of a prompt of other than common words, a byte may be a token."""


def may_ask(request: InferenceRequest, limit: int) -> bool:
    """Return whether a prefill engine is to say them: what the client asks for is left to it.

    Args:
        request: the request.
        limit: bytes that an answer, or a body with them, may have.
    """
    size = len(request.body.data)
    return (
        request.endpoint.path == _PATH
        and ASK not in request.body.names
        and size + _BYTES_PER_TOKEN * size <= limit
    )


def add_ids(handle: bytes, ids: msgspec.Raw) -> Pieces | None:
    """Return a handle with them as its last member; None if they are no list of whole numbers.

    Args:
        handle: the handle.
        ids: the list as it stands in the answer.
    """
    if _FIRST.match(ids) is None or bytes(ids).translate(None, _OF_A_LIST) != b"[]":
        return None
    # An object's last byte is its brace, and a handle has members before it.
    return Pieces((memoryview(handle)[:-1], b",%s:" % _NAME, memoryview(ids), b"}"))
