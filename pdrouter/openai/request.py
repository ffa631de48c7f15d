"""A validated inference request."""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

import msgspec
from msgspec import structs

from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.coercion import as_boolean, as_integer, read_scalar
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.form import Form, FormInvalid, is_form, parse_form
from pdrouter.openai.json_walk import QUOTE
from pdrouter.openai.media import MULTIMODAL, find_media
from pdrouter.openai.misfits import list_misfits
from pdrouter.openai.paths import Endpoint, Forms
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.text_messages import CONVERSATIONS

_CONTROL_MEMBERS = frozenset(
    {
        "model",
        "messages",
        "prompt",
        "prompt_embeds",
        "input",
        "token_ids",
        "text",
        "input_ids",
        "logprob_start_len",
        "max_new_tokens",
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
        "request_id",
        "truncation",
        "truncate_prompt_tokens",
    }
)

SINGLE_POD_PATH = "single-pod-path"
"""Why a request is served whole whose path knows no legs."""

_LISTS = frozenset({"messages", "token_ids"})
_ABSENT = (None, b"null")
_NULL = ord("n")
"""No other value begins with it."""
_FIRST_ITEM = re.compile(rb"\[[ \t\n\r]*(.)", re.DOTALL)
_NO_PROMPT = memoryview(b"")
_NO_MEMBERS = Body(b"{}")
RESPONSE_ID = "request_id"
"""The member by which vLLM, SGLang and TensorRT-LLM are told what the id of an answer is to be."""

_PRIORITY = "priority"
_NO_EDITS: Mapping[str, bytes | Pieces] = MappingProxyType({})
_NEVER, _ALWAYS = Forms.NEVER, Forms.ALWAYS
_FORM_FIELDS = frozenset({"model", "stream"})
_SINGLE_POD: tuple[str, ...] = (SINGLE_POD_PATH,)
_MAX_LIMIT = 10**9
"""Numbers of any size are allowed, and one of so many digits is no limit."""


class InferenceRequest(msgspec.Struct, frozen=True):
    """What the router needs to know of a request; anything else is the engine's business.

    Attributes:
        endpoint: what was asked for.
        query: query string with its question mark, or nothing.
        body: the members of the client's body; none where that is a form.
        prompt_name: name of the member that is the prompt: messages, prompt, input or token ids;
            empty where the endpoint needs none.
        sampling: the nested object of limits and sampling options, where the endpoint has one and
            the client sent it.
        model: the model or adapter, as the client asked for it.
        stream: whether the answer is to be streamed.
        max_output_tokens: limit of the answer's length; None if the client sets none.
        misfits: why the request does not fit two legs; nothing where it does. A wire may say that
            some of these reasons are none on it.
        listed_tokens: how many ids of tokens the prompt is a list of; None if it is something else.
        form: the client's body, if it is a multipart form.
        engine_model: name of the model to the engines, where it is another one.
        ec_locator: where a trusted router in front has had the media encoded, as it stands in the
            body; None for any other request.
        ranked: whether the router says what the request's priority is, and not the client.
        priority: what it is, the lowest first; None for none.
        edits: what all its bodies have in place of members of the client's.
        prompt: the prompt as it stands in the body, not copied; nothing where there is none.
    """

    endpoint: Endpoint
    query: str
    body: Body
    prompt_name: str
    sampling: Body | None
    model: str
    stream: bool
    max_output_tokens: int | None
    misfits: tuple[str, ...]
    listed_tokens: int | None = None
    form: Form | None = None
    engine_model: str | None = None
    ec_locator: bytes | None = None
    ranked: bool = False
    priority: int | None = None
    edits: Mapping[str, bytes | Pieces] = _NO_EDITS
    prompt: memoryview = _NO_PROMPT

    @property
    def whole(self) -> str | None:
        """The first reason why it does not fit two legs on any wire; None where it does."""
        return self.misfits[0] if self.misfits else None

    def rename(self, model: str) -> "InferenceRequest":
        """Return the request with the model's name to the engines."""
        return structs.replace(self, engine_model=model)

    def with_edits(self, edits: Mapping[str, bytes | Pieces]) -> "InferenceRequest":
        """Return the request whose bodies have these values for some members."""
        return structs.replace(self, edits=edits)

    def trust_locator(self, locator: bytes) -> "InferenceRequest":
        """Return the request for one pod, which gets this locator."""
        misfits = (*self.misfits, "ec-locator")
        return structs.replace(self, misfits=misfits, ec_locator=locator)

    def rank(self, priority: int | None) -> "InferenceRequest":
        """Return the request with this priority, or with none, in place of the client's."""
        return structs.replace(self, ranked=True, priority=priority)

    def edit(self, replace: Mapping[str, bytes | Pieces], remove: Collection[str]) -> Pieces:
        """Return the body, changed as `Body.edit` says, with what is the router's to say."""
        if self.form is not None:
            return self.form.edit({} if self.engine_model is None else {"model": self.engine_model})
        if self.edits:
            replace = {**self.edits, **replace}
        if self.engine_model is not None:
            replace = {**replace, "model": encode(self.engine_model)}
        if self.priority is not None:
            replace = {**replace, _PRIORITY: b"%d" % self.priority}
        elif self.ranked:
            remove = {*remove, _PRIORITY}
        if self.endpoint.stateful and RESPONSE_ID not in replace:
            # It may be that of another's answer.
            remove = {*remove, RESPONSE_ID}
        return self.body.edit(replace, remove)


def parse_request(
    endpoint: Endpoint,
    query: str,
    data: bytes,
    *,
    transfer_members: frozenset[str],
    split_multimodal: bool,
    content_type: str = "application/json",
) -> InferenceRequest:
    """Validate a body and return the request.

    Args:
        endpoint: what the path asks for.
        query: query string of the path, with its question mark.
        data: the body.
        transfer_members: members that steer the KV transfer; like the other members that the
            router reads or writes, they may not occur twice.
        split_multimodal: whether prompts with images, sound or files are split in two legs.
        content_type: the type of the body; it matters where that may be a multipart form.

    Raises:
        RequestRejected: with status 400, and the member at fault.
    """
    if endpoint.forms is not _NEVER and is_form(content_type):
        return _read_form(endpoint, query, data, content_type)
    if endpoint.forms is _ALWAYS:
        message = f"{endpoint.path} takes multipart/form-data, not {content_type[:100]!r}"
        raise RequestRejected(400, "invalid_content_type", message, "content-type")
    try:
        body = Body(data)
        sampling = None if endpoint.sampling is None else _nested(body, endpoint.sampling)
    except BodyInvalid as error:
        raise RequestRejected(400, "invalid_body", str(error)) from None
    _check_duplicates(body, transfer_members)
    if sampling is not None:
        _check_duplicates(sampling, transfer_members)
    model = _read_model(body)
    prompt_name, prompt, listed_tokens = _find_prompt(endpoint, body)
    options = body if endpoint.sampling is None else sampling or _NO_MEMBERS
    stream = as_boolean(read_scalar(body, "stream", default=False))
    limits = [
        limit
        for name in endpoint.limits
        if name in options.names and (limit := read_scalar(options, name)) is not None
    ]
    misfits = _SINGLE_POD
    if endpoint.legs == 2:
        misfits = tuple(list_misfits(endpoint, body, options, limits, stream=stream))
        if not split_multimodal and (media := _find_media(body, prompt_name)):
            misfits = (*misfits, media)
    return InferenceRequest(
        endpoint,
        query,
        body,
        prompt_name,
        sampling,
        model,
        bool(stream),
        _find_least(limits) if limits else None,
        misfits,
        listed_tokens,
        prompt=prompt,
    )


def _read_form(endpoint: Endpoint, query: str, data: bytes, content_type: str) -> InferenceRequest:
    try:
        form = parse_form(data, content_type, _FORM_FIELDS)
        model, stream = form.read("model"), form.read("stream")
    except FormInvalid as invalid:
        code = "invalid_value" if invalid.param else "invalid_body"
        raise RequestRejected(400, code, str(invalid), invalid.param) from None
    name = (model or "").strip()
    if not name:
        raise _invalid("model", "'model' is required and must be a text that is not empty")
    return InferenceRequest(
        endpoint=endpoint,
        query=query,
        body=_NO_MEMBERS,
        prompt_name="",
        sampling=None,
        model=name,
        stream=bool(as_boolean(stream)),
        max_output_tokens=None,
        misfits=_SINGLE_POD,
        form=form,
        engine_model=None if name == model else name,
    )


def _nested(body: Body, name: str) -> Body | None:
    raw = body.raw(name)
    if raw is None or raw == b"null":
        return None
    try:
        return Body(raw)
    except BodyInvalid as error:
        reason = f"cannot be read: {error}" if raw.startswith(b"{") else "must be an object"
        raise _invalid(name, f"{name!r} {reason}") from None


def _check_duplicates(holder: Body, transfer_members: frozenset[str]) -> None:
    duplicates = holder.duplicates
    if duplicates:
        repeated = duplicates & (_CONTROL_MEMBERS | transfer_members)
        if repeated:
            name = min(repeated)
            raise _invalid(name, f"{name!r} occurs more than once")


def _invalid(param: str, message: str) -> RequestRejected:
    return RequestRejected(400, "invalid_value", message, param)


def _read_model(body: Body) -> str:
    try:
        model = body.get("model", str)
    except msgspec.MsgspecError:
        model = None
    if not model:
        raise _invalid("model", "'model' is required and must be a string that is not empty")
    return model


def _find_least(limits: Iterable[object]) -> int | None:
    """Return the least limit; what is no limit, an engine is to refuse."""
    numbers = [number for limit in limits if (number := as_integer(limit)) is not None]
    return min((min(number, _MAX_LIMIT) for number in numbers if number >= 0), default=None)


def _find_prompt(endpoint: Endpoint, body: Body) -> tuple[str, memoryview, int | None]:
    """Return name and value of the prompt's member; how many ids of tokens it lists, if it does.

    There is no name, and no value, where none is needed.
    """
    if not endpoint.prompts:
        return "", _NO_PROMPT, None
    for name in endpoint.prompts:
        prompt = body.view(name)
        if prompt is not None and prompt[0] != _NULL:
            break
    else:
        raise _invalid(endpoint.prompts[0], f"{endpoint.prompts[0]!r} is required")
    listed = None
    first = _FIRST_ITEM.match(prompt)
    if first is not None:
        if first[1] == b"]":
            raise _invalid(name, f"{name!r} must not be empty")
        if first[1].isdigit():
            listed = body.data.count(b",", *body.span(name)) + 1
    elif name in _LISTS:
        raise _invalid(name, f"{name!r} must be a list")
    elif prompt[0] != QUOTE:
        raise _invalid(name, f"{name!r} must be a string or a list")
    return name, prompt, listed


def _find_media(body: Body, prompt_name: str) -> str | None:
    if prompt_name == "token_ids":
        # What the placeholders among the tokens stand for.
        return MULTIMODAL if body.raw("features") not in _ABSENT else None
    return find_media(body, prompt_name) if prompt_name in CONVERSATIONS else None
