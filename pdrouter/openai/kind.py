"""What kind of request one is, as far as that may be why an engine fails it."""

from typing import NamedTuple

import msgspec

from pdrouter.openai.body import Body
from pdrouter.openai.request import InferenceRequest

_SHAPING = (
    *("tool_choice", "function_call", "tools", "functions", "parallel_tool_calls"),
    *("response_format", "text", "output_format", "output_config", "json_schema"),
    *("structured_outputs", "structural_tag", "regex", "ebnf", "grammar"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
    *("guided_whitespace_pattern", "logits_processors", "logit_bias", "allowed_token_ids"),
    *("bad_words", "stop", "stop_sequences", "stop_token_ids", "include_stop_str_in_output"),
    *("ignore_eos", "logprobs", "top_logprobs", "reasoning", "reasoning_effort", "thinking"),
    *("thinking_token_budget", "include_reasoning", "return_token_ids", "repetition_detection"),
    *("prediction", "modalities", "audio"),
)
"""Members that shape or read the output: what an engine may not be able to do with one token."""

_NAMES = frozenset(_SHAPING)
_UNSET = (b"null", b"false", b"[]", b"{}")
_LONGEST_UNSET = 5
_UNDEMANDING = frozenset({"auto", "none", "text"})
_MODES = frozenset({"tool_choice", "function_call", "response_format", "text", "output_format"})


class RequestKind(NamedTuple):
    """A kind of requests.

    Attributes:
        path: what they ask for.
        members: the members by which they shape their output, in the order in which engines'
            documentation has them; one at least.
    """

    path: str
    members: tuple[str, ...]


class _Choice(msgspec.Struct):
    type: str = ""
    format: msgspec.Raw = msgspec.Raw(b"")


_decode_choice = msgspec.json.Decoder(_Choice | str).decode


def describe_kind(request: InferenceRequest) -> RequestKind | None:
    """Return the kind of a request; None if nothing in it shapes the output."""
    holders = [request.body] if request.sampling is None else [request.body, request.sampling]
    demanded = {
        name
        for holder in holders
        for name in _NAMES.intersection(holder.names)
        if name != request.prompt_name and _is_demanding(holder, name)
    }
    members = tuple(name for name in _SHAPING if name in demanded)
    return RequestKind(request.endpoint.path, members) if members else None


def _is_demanding(holder: Body, name: str) -> bool:
    value = holder.view(name)
    if value is None or (len(value) <= _LONGEST_UNSET and bytes(value) in _UNSET):
        return False
    return name not in _MODES or _read_mode(value) not in _UNDEMANDING


def _read_mode(raw: memoryview | msgspec.Raw) -> str:
    """Return which mode `"auto"`, `{"type": "auto"}` or `{"format": {"type": "text"}}` names."""
    try:
        choice = _decode_choice(raw)
        if isinstance(choice, _Choice) and choice.format:
            choice = _decode_choice(choice.format)
    except msgspec.MsgspecError:
        return ""
    return choice if isinstance(choice, str) else choice.type
