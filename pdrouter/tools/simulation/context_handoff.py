"""TensorRT-LLM's wire: a context leg, a generation leg, and what the one hands to the other.

Source: TensorRT-LLM `openai_disagg_service.py`, `disagg_auth.py`. Context first: the generation leg
brings what the context leg answered. Generation first: it comes before that, and the context engine
computes only once the generation engine waits for it.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yarl import URL

from pdrouter.tools.simulation.api_requests import GenerationRequest
from pdrouter.tools.simulation.bootstrap import JOIN_PATH
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.legs import disaggregated_params
from pdrouter.tools.simulation.peer_client import PeerClient
from pdrouter.tools.simulation.prompts import Members, is_token_list
from pdrouter.tools.simulation.refusal import ContractViolated
from pdrouter.tools.simulation.transfers import REGISTER_PATH, Registration, fetch_transfer

GENERATION_FIRST = "generation_first"
AUTH_HEADER = "x-trtllm-disagg-auth"

_PARAMS = "disaggregated_params"
_LEAST_ID, _MOST_ID = 2**42, 2**63 - 1
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Context:
    """What a context leg asks for.

    Attributes:
        request_id: The id that both legs have.
        waits: Whether the generation leg comes first.
    """

    request_id: int
    waits: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a generation leg brings.

    Attributes:
        request_id: The id under which the context engine has, or will have, the blocks.
        address: Host and port of the context engine.
        engine_id: Its identity; empty where the generation leg comes first.
    """

    request_id: int
    address: str
    engine_id: str


def read_context(params: Mapping[str, Any]) -> Context:
    """Return what a context leg asks for.

    Raises:
        ContractViolated: It lacks a member that the engine needs, or has one that it must not have.
    """
    number = _read_id(params, "disagg_request_id")
    if params.get("ctx_request_id") not in (None, number):
        raise _violated("context_id", "a context leg has no ctx_request_id of another request")
    return Context(number, params.get("schedule_style") == GENERATION_FIRST)


def announce(
    request: GenerationRequest, context: Context, config: EngineConfig, address: str, token: int
) -> dict[str, object]:
    """Give the `disaggregated_params` of a context leg's answer.

    Args:
        request: The request.
        context: What its leg asked for.
        config: The engine's settings.
        address: Host and port of the engine.
        token: The first token of the answer.
    """
    state = f"{config.engine_id}:{context.request_id}"
    return {
        "request_type": "context_only",
        "first_gen_tokens": [token],
        "first_gen_log_probs": None,
        "ctx_request_id": context.request_id,
        "encoded_opaque_state": base64.b64encode(state.encode()).decode(),
        "draft_tokens": None,
        "disagg_request_id": context.request_id,
        "ctx_dp_rank": 0,
        "ctx_info_endpoint": address,
        "schedule_style": GENERATION_FIRST if context.waits else "context_first",
        "ctx_usage": {"prompt_tokens": request.prompt_tokens, "completion_tokens": 1},
    }


def restore_digest(token_ids: object) -> str:
    """Return the identity of the prompt that a generation leg brings as tokens.

    Raises:
        ContractViolated: They are not what a context engine has said.
    """
    if not is_token_list(token_ids) or not isinstance(token_ids, Sequence):
        raise _violated("generation_tokens", "prompt_token_ids must be a list of integers")
    head = token_ids[:_DIGEST_BYTES]
    if len(head) < _DIGEST_BYTES or not all(0 <= each < 256 for each in head):
        raise _violated("generation_tokens", "prompt_token_ids are not those of the context leg")
    return bytes(head).hex()


def read_continuation(params: Mapping[str, Any]) -> Continuation:
    """Return what a generation leg brings.

    Raises:
        ContractViolated: A real engine would fail, or wait for ever.
    """
    number = _read_id(params, "ctx_request_id")
    if _read_id(params, "disagg_request_id") != number:
        raise _violated("generation_id", "ctx_request_id and disagg_request_id differ")
    address = params.get("ctx_info_endpoint")
    if not isinstance(address, str) or not address:
        raise _violated("generation_endpoint", "ctx_info_endpoint is missing")
    if params.get("schedule_style") == GENERATION_FIRST:
        return Continuation(number, address, "")
    if not is_token_list(params.get("first_gen_tokens")):
        raise _violated("generation_first_token", "first_gen_tokens is missing")
    try:
        state = base64.b64decode(str(params.get("encoded_opaque_state")), validate=True).decode()
    except ValueError:
        state = ""
    engine_id, _, known = state.rpartition(":")
    if known != str(number):
        raise _violated("generation_state", "encoded_opaque_state is not that of this request")
    return Continuation(number, address, engine_id)


def check_signature(params: Mapping[str, Any], header: str | None, key: str) -> None:
    """Hold a generation leg to its signature, where the engine has a key.

    Raises:
        ContractViolated: It has none, or a wrong one.
    """
    names = ("ctx_info_endpoint", "encoded_opaque_state")
    if not key or all(params.get(name) is None for name in names):
        return
    signed = json.dumps(
        {name: params.get(name) for name in names}, sort_keys=True, separators=(",", ":")
    )
    digest = hmac.new(key.encode(), signed.encode(), hashlib.sha256).hexdigest()
    if header is None or not hmac.compare_digest(header, f"sha256={digest}"):
        message = f"{AUTH_HEADER} is missing or wrong"
        raise ContractViolated("generation_signature", 401, message)


def continue_request(request: GenerationRequest, members: Members) -> GenerationRequest:
    """Return a generation leg's request with the prompt that the context leg has read.

    Raises:
        ContractViolated: The tokens are not those of the context leg, or of another prompt.
    """
    ids = members.get("prompt_token_ids")
    digest = restore_digest(members.get("prompt") if ids is None else ids)
    if ids is not None and digest != request.digest:
        raise _violated("legs_differ", "the legs have different prompts")
    usage = disaggregated_params(members).get("ctx_usage") or {}
    tokens = usage.get("prompt_tokens", request.prompt_tokens)
    return replace(request, digest=digest, prompt_tokens=tokens)


async def fetch_context(
    client: PeerClient, scheme: str, continuation: Continuation, digest: str
) -> None:
    """Wait for the blocks of a prompt.

    Args:
        client: Asks the context engine.
        scheme: What engines' APIs speak.
        continuation: What came with the generation leg.
        digest: The identity of its prompt.

    Raises:
        TransferFailed: No context engine is there, or the blocks did not come in time.
        ContractViolated: They are not this request's.
    """
    url = URL(f"{scheme}://{continuation.address}")
    if continuation.engine_id:
        number = str(continuation.request_id)
        registration = Registration(url.with_path(REGISTER_PATH), continuation.engine_id, number)
        await fetch_transfer(client, registration, digest)
        return
    question = {"rooms": [continuation.request_id], "prompt_digest": digest}
    if not (await client.ask(url.with_path(JOIN_PATH), question))["same_prompt"]:
        raise ContractViolated("legs_differ", 500, "the legs have different prompts")


def _read_id(params: Mapping[str, Any], name: str) -> int:
    number = params.get(name)
    if type(number) is not int or not _LEAST_ID <= number <= _MOST_ID:
        raise _violated("disagg_id", f"{name} must be a number from 2^42 to 2^63 - 1")
    return number


def _violated(reason: str, message: str) -> ContractViolated:
    return ContractViolated(reason, 400, message, param=_PARAMS)
