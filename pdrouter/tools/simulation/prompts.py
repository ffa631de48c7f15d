"""What a request's prompt is: its digest, which both legs must share, and its length in tokens."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

Members = Mapping[str, Any]
"""The members of a request body, decoded by the standard library: integers keep their value."""

BYTES_PER_TOKEN = 4

_OUTPUT_MEMBERS = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "min_tokens",
        "n",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "return_token_ids",
        "kv_transfer_params",
        "ec_transfer_params",
        "disagg_prefill_resp",
        "disaggregated_params",
        "prompt_token_ids",
        "request_id",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "priority",
    }
)
"""Members in which the two legs may differ; all others shape the prompt or must arrive intact."""


def prompt_digest(path: str, members: Members) -> str:
    """Give the identity of a prompt, the same on both legs of a request.

    The order of the top-level members does not count. The order inside them does, since chat
    templates print tools and content as they come.

    Args:
        path: The request's path without query: it decides how the prompt is rendered.
        members: The request body.

    Returns:
        A SHA-256 in hexadecimal.
    """
    shared = {name: members[name] for name in sorted(members.keys() - _OUTPUT_MEMBERS)}
    sampling = shared.pop("sampling_params", None)
    if isinstance(sampling, dict):
        shared["sampling_params"] = {
            name: value for name, value in sampling.items() if name not in _OUTPUT_MEMBERS
        }
    canonical = json.dumps([path, shared], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_HEADING_MEMBERS = ("model", "tools", "system", "instructions", "cache_salt")
_PROMPT_MEMBERS = ("messages", "prompt", "input", "token_ids", "text", "input_ids")


def prefix_blocks(members: Members, block_tokens: int) -> tuple[str, ...]:
    """Give the identities of a prompt's whole blocks, each depending on all that is before it.

    A prompt that begins with another one begins with its blocks.

    Args:
        members: The request body.
        block_tokens: Tokens in a block.
    """
    heading = json.dumps([members.get(name) for name in _HEADING_MEMBERS])
    chain = hashlib.sha256(heading.encode())
    given = next((members[name] for name in _PROMPT_MEMBERS if members.get(name)), "")
    items = given if isinstance(given, list) else [given]
    text = "".join(item if isinstance(item, str) else f"{json.dumps(item)}\n" for item in items)
    prompt = text.encode("utf-8", "surrogatepass")
    size = block_tokens * BYTES_PER_TOKEN
    blocks: list[str] = []
    for start in range(0, len(prompt) - size + 1, size):
        chain.update(prompt[start : start + size])
        blocks.append(chain.hexdigest())
    return tuple(blocks)


def text_tokens(*contents: object) -> int:
    """Count the tokens of texts: one for each four bytes of UTF-8, and at least one.

    Args:
        contents: Text, lists of contents, or objects with content under `text`, `content` or
            `input`; anything else counts nothing.
    """
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(list(contents)))
    return max(1, -(-size // BYTES_PER_TOKEN))


def _texts(pending: list[object]) -> Iterator[str]:
    while pending:
        content = pending.pop()
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            pending.extend(content)
        elif isinstance(content, dict):
            pending.extend(content.get(name) for name in ("text", "content", "input"))


def is_token_list(value: object) -> bool:
    """Say whether a prompt is a non-empty list of token ids."""
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
