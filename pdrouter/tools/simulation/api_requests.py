"""Turns a request body into a typed generation request, refusing what vLLM refuses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pdrouter.openai.coercion import as_boolean, as_integer
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.output_plans import FREE, OutputPlan, plan_output
from pdrouter.tools.simulation.prompts import Members, is_token_list, prompt_digest, text_tokens
from pdrouter.tools.simulation.refusal import Refused, malformed


class Api(StrEnum):
    """The APIs that generate tokens, by path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    MESSAGES = "/v1/messages"
    RESPONSES = "/v1/responses"
    GENERATE = "/inference/v1/generate"
    SGLANG = "/generate"


LIMITS: Mapping[Api, tuple[str, ...]] = {
    Api.CHAT: ("max_completion_tokens", "max_tokens"),
    Api.COMPLETIONS: ("max_tokens",),
    Api.MESSAGES: ("max_tokens",),
    Api.RESPONSES: ("max_output_tokens",),
    Api.GENERATE: ("max_tokens",),
    Api.SGLANG: ("max_new_tokens",),
}
"""The members that limit the output, by API; the first that is set counts."""

_MOST_CHOICES = 16_384
"""Of one prompt: vLLM's `VLLM_MAX_N_SEQUENCES`."""
_APIS_WITH_CHOICES = (Api.CHAT, Api.COMPLETIONS, Api.GENERATE, Api.SGLANG)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that the engine can run.

    Attributes:
        api: The API it came by.
        model: The model it asks for.
        prompt_tokens: Length of all its prompts together.
        prompts: How many prompts it has.
        digest: The identity of the prompt.
        limit: The most output tokens the client wants, if it says so.
        min_tokens: The fewest output tokens it wants.
        n: Choices for each prompt.
        stream: Whether the answer is streamed.
        include_usage: Whether a stream ends with a chunk that has the usage.
        plan: What the answer is to be.
        top_logprobs: How many alternatives to each token are told, with its logarithmic
            probability; None if neither is.
        return_token_ids: Whether a plain answer to a chat says the ids of the prompt's tokens.
        priority: Its place among those that wait, if the engine goes by that: the lowest is first.
    """

    api: Api
    model: str
    prompt_tokens: int
    prompts: int
    digest: str
    limit: int | None
    min_tokens: int
    n: int
    stream: bool
    include_usage: bool
    plan: OutputPlan = FREE
    top_logprobs: int | None = None
    return_token_ids: bool = False
    priority: int = 0


def parse_members(body: bytes, content_type: str) -> Members:
    """Decode a request body.

    Args:
        body: The bytes received.
        content_type: The request's media type, without parameters.

    Raises:
        Refused: It is not a JSON object, or does not say that it is JSON.
    """
    if content_type != "application/json":
        raise malformed("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        members = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise malformed(f"JSON decode error: {error}") from error
    if not isinstance(members, dict):
        raise malformed("Input should be a valid dictionary")
    return members


def sampling_members(api: Api, members: Members) -> Members:
    """Give the object in which an API has limits and `n`."""
    if api is Api.SGLANG:
        # To SGLang, it need not be there; the router sends no list of them.
        sampling = members.get("sampling_params") or {}
        if not isinstance(sampling, dict):
            raise malformed("sampling_params must be an object", "sampling_params")
        return sampling
    if api is not Api.GENERATE:
        return members
    sampling = members.get("sampling_params")
    if not isinstance(sampling, dict):
        raise malformed("Field required: sampling_params must be an object", "sampling_params")
    return sampling


def check_model(members: Members, config: EngineConfig) -> str:
    """Give the model that a request asks for, the base model if it names none.

    Raises:
        Refused: The engine does not serve it.
    """
    model = members.get("model")
    if model is None:
        return config.base_model
    if not isinstance(model, str):
        raise malformed("Input should be a valid string", "model")
    if model not in config.models:
        raise Refused(404, f"The model `{model}` does not exist.", param="model")
    return model


def parse_generation(api: Api, members: Members, config: EngineConfig) -> GenerationRequest:
    """Check a request as vLLM does, in vLLM's order, and give it typed.

    Raises:
        Refused: vLLM would not accept it, either.
    """
    sampling = sampling_members(api, members)
    stream = _flag(members, "stream")
    options = _stream_options(members, stream=stream)
    _check_combinations(members, sampling, stream=stream)
    lengths = _prompt_lengths(api, members)
    limit = _limit(api, members, sampling)
    min_tokens = _integer(sampling, "min_tokens", at_least=0) or 0
    n = _choices(sampling) if api in _APIS_WITH_CHOICES else 1
    model = check_model(members, config)
    if limit is not None and min_tokens > limit:
        raise Refused(
            400,
            f"min_tokens must be less than or equal to max_tokens={limit}, got {min_tokens}.",
            param="min_tokens",
        )
    kept = _kept_tokens(api, members, limit, config.max_model_len)
    digest = prompt_digest(api, members)
    if kept is not None and max(lengths) > kept:
        lengths = [min(length, kept) for length in lengths]
        digest = prompt_digest(f"{api} cut to {kept}", members)
    _check_length(max(lengths), limit, config.max_model_len)
    return GenerationRequest(
        api=api,
        model=model,
        prompt_tokens=sum(lengths),
        prompts=len(lengths),
        digest=digest,
        limit=limit,
        min_tokens=min_tokens,
        n=n,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        plan=plan_output(members),
        top_logprobs=_top_logprobs(api, members, sampling),
        return_token_ids=config.release == "new" and _flag(members, "return_token_ids"),
    )


def _flag(members: Members, name: str) -> bool:
    value = members.get(name)
    flag = False if value is None else as_boolean(value)
    if flag is None:
        raise malformed("Input should be a valid boolean", name)
    return flag


def _integer(members: Members, name: str, *, at_least: int) -> int | None:
    value = members.get(name)
    if value is None:
        return None
    number = as_integer(value)
    if number is None:
        raise malformed("Input should be a valid integer", name)
    if number < at_least:
        raise Refused(400, f"{name} must be at least {at_least}, got {number}.", param=name)
    return number


def _choices(sampling: Members) -> int:
    n = _integer(sampling, "n", at_least=1) or 1
    if n > _MOST_CHOICES:
        raise Refused(400, f"n must be at most {_MOST_CHOICES}, got {n}.", param="n")
    return n


def _limit(api: Api, members: Members, sampling: Members) -> int | None:
    # To echo the prompt alone is all that a limit of 0 is good for.
    least = 0 if api is Api.COMPLETIONS and _flag(members, "echo") else 1
    limits = [_integer(sampling, name, at_least=least) for name in LIMITS[api]]
    limit = next((limit for limit in limits if limit is not None), None)
    if limit is None and api is Api.MESSAGES:
        raise malformed("Field required", "max_tokens")
    return limit


def _kept_tokens(api: Api, members: Members, limit: int | None, window: int) -> int | None:
    """Give how many tokens of the prompt the engine keeps; None if it cuts nothing off."""
    if api is Api.RESPONSES and members.get("truncation", "disabled") != "disabled":
        return window - (limit or 0)
    wanted = _integer(members, "truncate_prompt_tokens", at_least=-1)
    return window - (limit or 0) if wanted == -1 else wanted


def _top_logprobs(api: Api, members: Members, sampling: Members) -> int | None:
    """Give how many alternatives are wanted: where, and whether as a number, depends on the API."""
    if api is Api.RESPONSES:
        wanted = "message.output_text.logprobs" in (members.get("include") or ())
        return _integer(members, "top_logprobs", at_least=0) or 0 if wanted else None
    if api is Api.CHAT:
        wanted = _flag(members, "logprobs")
        return _integer(members, "top_logprobs", at_least=0) or 0 if wanted else None
    return None if api is Api.MESSAGES else _integer(sampling, "logprobs", at_least=0)


def _stream_options(members: Members, *, stream: bool) -> Mapping[str, Any]:
    options = members.get("stream_options")
    if options and not stream:
        raise malformed("Stream options can only be defined when `stream=True`.", "stream_options")
    if options is not None and not isinstance(options, dict):
        raise malformed("Input should be a valid dictionary", "stream_options")
    return options or {}


def _check_combinations(members: Members, sampling: Members, *, stream: bool) -> None:
    if members.get("tools") == []:
        raise malformed(
            "`tools` must not be an empty array. "
            "Either provide at least one tool or omit the field entirely.",
            "tools",
        )
    if members.get("best_of") not in (None, 1):
        raise malformed("best_of is not supported", "best_of")
    if stream and _flag(sampling, "use_beam_search"):
        raise Refused(400, "Streaming is not currently supported with beam search")
    if stream and sampling.get("prompt_logprobs"):
        raise malformed(
            "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"
        )
    if sampling.get("top_logprobs") and not sampling.get("logprobs"):
        raise malformed(
            "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"
        )


def _check_length(prompt_tokens: int, limit: int | None, max_model_len: int) -> None:
    output = limit or 1
    if prompt_tokens + output > max_model_len:
        raise Refused(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {output} output tokens and your prompt contains {prompt_tokens} input "
            f"tokens, for a total of {prompt_tokens + output} tokens. Please reduce the length "
            "of the input prompt or the number of requested output tokens.",
            param="input_tokens",
        )


def _prompt_lengths(api: Api, members: Members) -> list[int]:
    match api:
        case Api.CHAT | Api.MESSAGES:
            return [_messages_length(members)]
        case Api.COMPLETIONS:
            return _completion_lengths(members.get("prompt"))
        case Api.RESPONSES:
            given = members.get("input")
            if not isinstance(given, str | list) or not given:
                raise malformed("Field required: a string or a list", "input")
            return [text_tokens(given, members.get("instructions"))]
        case Api.GENERATE:
            tokens = members.get("token_ids")
            if not isinstance(tokens, list) or not is_token_list(tokens):
                raise malformed("Field required: a list of integers", "token_ids")
            return [len(tokens)]
        case Api.SGLANG:
            if members.get("text") is not None and members.get("input_ids") is not None:
                raise malformed("Either text or input_ids must be provided, not both.", "text")
            return _completion_lengths(members.get("text") or members.get("input_ids"))


def _messages_length(members: Members) -> int:
    messages = members.get("messages")
    if not isinstance(messages, list) or not messages:
        raise malformed("Field required: a non-empty list", "messages")
    if not all(isinstance(message, dict) and message.get("role") for message in messages):
        raise malformed("Each message must be an object with a role", "messages")
    return text_tokens(messages, members.get("system"))


def _completion_lengths(prompt: object) -> list[int]:
    if isinstance(prompt, str) and prompt:
        return [text_tokens(prompt)]
    if isinstance(prompt, list) and prompt:
        if is_token_list(prompt):
            return [len(prompt)]
        if all(isinstance(item, str) and item for item in prompt):
            return [text_tokens(item) for item in prompt]
        if all(is_token_list(item) for item in prompt):
            return [len(item) for item in prompt]
    raise malformed("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
