"""A prompt as tokens: what prefill engines say, and decode engines may be given."""

from collections.abc import Mapping
from typing import Any

from pdrouter.tools.simulation.api_requests import Api, GenerationRequest
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.refusal import ContractViolated


def token_ids_of(request: GenerationRequest) -> list[int]:
    """Give a prompt as tokens: made up, but of the right number, and from them follows the rest."""
    digest = bytes.fromhex(request.digest)
    return [*digest, *[0] * max(0, request.prompt_tokens - len(digest))]


def check_token_ids(
    request: GenerationRequest, params: Mapping[str, Any], config: EngineConfig
) -> None:
    """Check the tokens that a vLLM's decode leg brings, if it does: they are taken for the prompt.

    Only chats are looked at, and not by old engines.

    Raises:
        ContractViolated: They are not those of the prompt.
    """
    ids = params.get("prompt_token_ids")
    if ids is None or config.release == "old" or request.api is not Api.CHAT:
        return
    if ids != token_ids_of(request):
        message = "prompt_token_ids are those of another prompt"
        raise ContractViolated("decode_token_ids", 500, message)
