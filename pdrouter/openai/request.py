"""A validated inference request."""

import re
from typing import TypeVar

import msgspec
from msgspec import structs

from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.media import has_media
from pdrouter.openai.paths import Endpoint

T = TypeVar("T")

_CONTROL_MEMBERS = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "prompt_embeds",
        "input",
        "token_ids",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "min_tokens",
        "n",
        "best_of",
        "echo",
        "use_beam_search",
        "prompt_logprobs",
        "stream",
        "stream_options",
        "sampling_params",
        "extra_args",
        "vllm_xargs",
        "store",
        "background",
        "previous_response_id",
        "conversation",
    }
)

_LISTS = frozenset({"messages", "token_ids"})
_ABSENT = (None, b"null")
_FIRST_ITEM = re.compile(rb"\[[ \t\n\r]*(.)", re.DOTALL)
_NO_PROMPT = memoryview(b"")


class InferenceRequest(msgspec.Struct, frozen=True):
    """What the router needs to know of a request; anything else is the engine's business.

    Attributes:
        endpoint: what was asked for.
        query: query string with its question mark, or nothing.
        body: the client's body.
        prompt_name: name of the member that is the prompt: messages, prompt, input or token ids;
            empty where the endpoint needs none.
        sampling: the nested object of limits and sampling options, where the endpoint has one and
            the client sent it.
        model: the model or adapter, as the client asked for it.
        stream: whether the answer is to be streamed.
        max_output_tokens: limit of the answer's length; None if the client sets none.
        whole: why the request does not fit two legs; None where it does.
    """

    endpoint: Endpoint
    query: str
    body: Body
    prompt_name: str
    sampling: Body | None
    model: str
    stream: bool
    max_output_tokens: int | None
    whole: str | None

    @property
    def prompt(self) -> memoryview:
        """The prompt as it stands in the body, not copied; nothing where there is none."""
        return self.body.view(self.prompt_name) or _NO_PROMPT


def parse_request(
    endpoint: Endpoint,
    query: str,
    data: bytes,
    *,
    transfer_members: frozenset[str],
    split_multimodal: bool,
) -> InferenceRequest:
    """Validate a body and return the request.

    Args:
        endpoint: what the path asks for.
        query: query string of the path, with its question mark.
        data: the body.
        transfer_members: members that steer the KV transfer; like the other members that the
            router reads or writes, they may not occur twice.
        split_multimodal: whether prompts with images, sound or files are split in two legs.

    Raises:
        RequestRejected: with status 400, and the member at fault.
    """
    try:
        body = Body(data)
        sampling = _nested(body, endpoint.sampling)
    except BodyInvalid as error:
        raise RequestRejected(400, "invalid_body", str(error)) from None
    for holder in (body, sampling):
        repeated = holder and holder.duplicates & (_CONTROL_MEMBERS | transfer_members)
        if repeated:
            name = min(repeated)
            raise _invalid(name, f"{name!r} occurs more than once")
    model = _get(body, "model", str, "a string")
    if not model:
        raise _invalid("model", "'model' is required and must be a string that is not empty")
    prompt_name, prompt = _find_prompt(endpoint, body)
    stream = bool(_get(body, "stream", bool, "a boolean"))
    if not stream and body.raw("stream_options") not in _ABSENT:
        raise _invalid("stream_options", "'stream_options' is only allowed when 'stream' is true")
    options = sampling or body
    limits = [limit for name in endpoint.limits if (limit := _get_positive(options, name))]
    if endpoint.legs == 2:
        _get_positive(options, "n")
        whole = _find_misfit(endpoint, body, options)
        if whole is None and not split_multimodal and _is_multimodal(body, prompt_name, prompt):
            whole = "multimodal"
    else:
        whole = "single-pod-path"
    return InferenceRequest(
        endpoint,
        query,
        body,
        prompt_name,
        sampling,
        model,
        stream,
        min(limits, default=None),
        whole,
    )


def count_token_ids(prompt: memoryview) -> int | None:
    """Return the length of a prompt that is a list of token ids; None if it is something else."""
    first = _FIRST_ITEM.match(prompt)
    if first is None or not first[1].isdigit():
        return None
    return bytes(prompt).count(b",") + 1


def rename_model(request: InferenceRequest, model: str) -> InferenceRequest:
    """Return the request with a body that names the model as the engines know it."""
    return structs.replace(request, body=Body(request.body.edit({"model": encode(model)})))


def _nested(body: Body, name: str | None) -> Body | None:
    raw = body.raw(name) if name else None
    if raw is None or raw == b"null":
        return None
    try:
        return Body(raw)
    except BodyInvalid:
        raise _invalid(str(name), f"{name!r} must be an object") from None


def _invalid(param: str, message: str) -> RequestRejected:
    return RequestRejected(400, "invalid_value", message, param)


def _get(body: Body, name: str, expected: type[T], meaning: str) -> T | None:
    try:
        return body.get(name, expected)
    except msgspec.MsgspecError:
        raise _invalid(name, f"{name!r} must be {meaning}") from None


def _get_positive(body: Body, name: str) -> int | None:
    raw = body.raw(name)
    if raw is None or raw == b"null":
        return None
    if not (raw.isdigit() and raw.strip(b"0")):
        raise _invalid(name, f"{name!r} must be a positive integer")
    # Numbers of any size are allowed, and one of so many digits is no limit.
    return int(raw[:10])


def _find_prompt(endpoint: Endpoint, body: Body) -> tuple[str, memoryview]:
    """Return the name of the prompt's member and its value; nothing where none is needed."""
    if not endpoint.prompts:
        return "", _NO_PROMPT
    name, raw = endpoint.prompts[0], None
    for candidate in endpoint.prompts:
        value = body.view(candidate)
        if value is not None and bytes(value[:4]) != b"null":
            name, raw = candidate, value
            break
    if raw is None:
        raise _invalid(name, f"{name!r} is required")
    first = _FIRST_ITEM.match(raw)
    if first is not None:
        if first[1] == b"]":
            raise _invalid(name, f"{name!r} must not be empty")
    elif name in _LISTS:
        raise _invalid(name, f"{name!r} must be a list")
    elif bytes(raw[:1]) != b'"':
        raise _invalid(name, f"{name!r} must be a string or a list")
    return name, raw


def _find_misfit(endpoint: Endpoint, body: Body, options: Body) -> str | None:
    """Return why a request cannot be split into two legs.

    The rules and their reasons stand in vLLM: the answer of the prefill leg carries one set of
    blocks (several prompts, `n`, `best_of`, beam search); the decode engine computes the whole
    prompt again (`echo`, `prompt_logprobs`); the state of a conversation lives on one pod.
    """
    checks = (
        ("several-prompts", endpoint.batches and _has_several_prompts(endpoint, body)),
        ("n", _is_above_one(options, "n")),
        ("best-of", _is_above_one(options, "best_of")),
        ("beam-search", _is_set(options, "use_beam_search")),
        ("echo", _is_set(body, "echo")),
        ("prompt-logprobs", options.raw("prompt_logprobs") not in _ABSENT),
        ("stateful-responses", endpoint.stateful and _is_stateful(body)),
    )
    return next((reason for reason, applies in checks if applies), None)


def _is_above_one(body: Body, name: str) -> bool:
    return body.raw(name) not in (*_ABSENT, b"1")


def _is_set(body: Body, name: str) -> bool:
    # Engines take 1, "yes" and other spellings for true.
    return body.raw(name) not in (*_ABSENT, b"false")


def _is_stateful(body: Body) -> bool:
    return (
        body.raw("store") != b"false"
        or _is_set(body, "background")
        or any(body.raw(name) not in _ABSENT for name in ("previous_response_id", "conversation"))
    )


def _has_several_prompts(endpoint: Endpoint, body: Body) -> bool:
    # vLLM adds embeddings to the prompts, unless the prompt is an empty string.
    values = (body.raw(name) for name in endpoint.prompts)
    prompts = [raw for raw in values if raw is not None and raw not in (b"null", b'""')]
    return len(prompts) > 1 or any(map(_has_several_items, prompts))


def _has_several_items(prompt: bytes) -> bool:
    first = _FIRST_ITEM.match(prompt)
    # A list that starts with a number is one prompt of token ids.
    if first is None or first[1] not in (b'"', b"["):
        return False
    try:
        msgspec.json.decode(prompt, type=tuple[msgspec.Raw])
    except msgspec.ValidationError:
        return True
    return False


def _is_multimodal(body: Body, prompt_name: str, prompt: memoryview) -> bool:
    if prompt_name == "token_ids":
        # What the placeholders among the tokens stand for.
        return body.raw("features") not in _ABSENT
    return has_media(prompt)
