"""Which requests cannot be split into two legs, and why."""

import re
from collections.abc import Sequence
from itertools import islice

import msgspec

from pdrouter.openai.body import Body
from pdrouter.openai.coercion import as_boolean, as_integer, decode_scalar, read_scalar
from pdrouter.openai.json_walk import list_items
from pdrouter.openai.paths import Endpoint

_NO_STREAM_OPTIONS = (None, b"null", b"{}", b"[]", b'""', b"false", b"0")
_RARE = frozenset(
    {
        "n",
        "best_of",
        "use_beam_search",
        "echo",
        "prompt_logprobs",
        "logprob_start_len",
        "truncate_prompt_tokens",
        "min_tokens",
    }
)
"""Options that most requests do not have."""
_FIRST_ITEM = re.compile(rb"\[[ \t\n\r]*(.)", re.DOTALL)


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = msgspec.Raw(b"null")
    continuous_usage_stats: msgspec.Raw = msgspec.Raw(b"null")

    def are_invalid(self) -> bool:
        """Return whether a value is neither a truth value nor null."""
        for raw in (self.include_usage, self.continuous_usage_stats):
            value = decode_scalar(bytes(raw))
            if value is not None and as_boolean(value) is None:
                return True
        return False


def list_misfits(
    endpoint: Endpoint,
    body: Body,
    options: Body,
    limits: Sequence[object],
    *,
    stream: bool | None,
) -> list[str]:
    """Return the reasons why a request cannot be split into two legs; none if it can.

    The rules and their reasons stand in vLLM: the answer of the prefill leg carries one set of
    blocks (several prompts, `n`, `best_of`, beam search); the decode engine computes the whole
    prompt again (`echo`, `prompt_logprobs`); the state of a conversation lives on one pod; a prompt
    that is cut to what the answer leaves of the window would be another one on the prefill leg,
    whose answer has one token. What engines refuse, one of them is to refuse: on the prefill leg,
    the value at fault may be gone.

    Args:
        endpoint: what is asked for.
        body: the request.
        options: the object that has limits and sampling options.
        limits: the values of the endpoint's limits that it has, in their order.
        stream: whether the answer is to be streamed; None if engines refuse what the body says.
    """
    reasons = []
    rare = not (_RARE.isdisjoint(body.names) and _RARE.isdisjoint(options.names))
    if endpoint.batches and _has_several_prompts(endpoint, body):
        reasons.append("several-prompts")
    if rare:
        reasons += [reason for reason, applies in _check_rare_options(body, options) if applies]
    if endpoint.stateful and _is_stateful(body):
        reasons.append("stateful-responses")
    if (endpoint.stateful or rare) and _is_truncated(endpoint, body, options):
        reasons.append("truncated-prompt")
    if (
        (endpoint.limit_required and not limits)
        or not all(map(_is_positive, limits))
        or (rare and _has_invalid_numbers(options, limits))
        or _has_invalid_stream(body, stream)
    ):
        reasons.append("invalid-value")
    return reasons


def _check_rare_options(body: Body, options: Body) -> tuple[tuple[str, bool], ...]:
    return (
        ("n", (as_integer(read_scalar(options, "n")) or 1) > 1),
        ("best-of", as_integer(read_scalar(options, "best_of", 1)) != 1),
        ("beam-search", _is_on(options, "use_beam_search")),
        ("echo", _is_on(body, "echo")),
        ("prompt-logprobs", read_scalar(options, "prompt_logprobs") is not None),
        # SGLang's: from where on the prompt's are wanted; -1 is nowhere.
        ("prompt-logprobs", as_integer(read_scalar(body, "logprob_start_len", -1)) != -1),
    )


def _is_on(body: Body, name: str) -> bool:
    """Return whether an option is set, or may be: only an engine knows what an odd value means."""
    return as_boolean(read_scalar(body, name, default=False)) is not False


def _is_stateful(body: Body) -> bool:
    return (
        as_boolean(read_scalar(body, "store", default=True)) is not False
        or _is_on(body, "background")
        or any(
            read_scalar(body, name) is not None for name in ("previous_response_id", "conversation")
        )
    )


def _is_truncated(endpoint: Endpoint, body: Body, options: Body) -> bool:
    """Return whether the prompt is cut to a length that depends on the limit of the answer.

    A length that the client gives is the same on both legs. To vLLM, null is not `disabled`.
    """
    if endpoint.stateful and body.raw("truncation") not in (None, b'"disabled"'):
        return True
    return any(
        (as_integer(read_scalar(holder, "truncate_prompt_tokens", 1)) or 0) < 1
        for holder in (body, options)
        if "truncate_prompt_tokens" in holder
    )


def _is_positive(value: object) -> bool:
    number = as_integer(value)
    return number is not None and number > 0


def _has_invalid_numbers(options: Body, limits: Sequence[object]) -> bool:
    if not _is_positive(read_scalar(options, "n", 1)):
        return True
    if "min_tokens" not in options.names:
        return False
    minimum = as_integer(read_scalar(options, "min_tokens", 0))
    # Of two limits, engines heed the one that is named last.
    limit = as_integer(limits[-1]) if limits else None
    return minimum is None or minimum < 0 or (limit is not None and minimum > limit)


def _has_invalid_stream(body: Body, stream: bool | None) -> bool:
    if stream:
        if "stream_options" not in body.names:
            return False
        try:
            stream_options = body.get("stream_options", _StreamOptions)
        except msgspec.ValidationError:
            return True
        return stream_options is not None and stream_options.are_invalid()
    return stream is None or body.raw("stream_options") not in _NO_STREAM_OPTIONS


def _has_several_prompts(endpoint: Endpoint, body: Body) -> bool:
    # vLLM adds embeddings to the prompts, unless the prompt is an empty string.
    values = (body.view(name) for name in endpoint.prompts)
    prompts = [raw for raw in values if raw is not None and bytes(raw[:4]) not in (b"null", b'""')]
    return len(prompts) > 1 or any(map(has_several_items, prompts))


def has_several_items(prompt: memoryview) -> bool:
    """Return whether a value is a list of several prompts, rather than one."""
    first = _FIRST_ITEM.match(prompt)
    # A list that starts with a number is one prompt of token ids.
    if first is None or first[1] not in (b'"', b"["):
        return False
    return len(list(islice(list_items(prompt), 2))) > 1
