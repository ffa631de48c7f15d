"""The request paths that are served, and what a request on each looks like."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the API.

    Attributes:
        path: path without query string.
        prompts: members of which one must be there. Each is a string or a list that is not empty.
        batches: whether a list in one of `prompts` is several prompts, not one (`["a", "b"]`).
        limits: members that limit the number of output tokens.
        sampling: the object that holds limits and sampling options; None where they are top-level.
        legs: 2 where a request may be split into a prefill and a decode leg, else 1.
        stateful: whether answers are kept by the engine unless the request says otherwise.
    """

    path: str
    prompts: tuple[str, ...] = ()
    batches: bool = False
    limits: tuple[str, ...] = ("max_tokens",)
    sampling: str | None = None
    legs: int = 2
    stateful: bool = False


_TWO_LEGS = (
    Endpoint(
        "/v1/chat/completions",
        prompts=("messages",),
        limits=("max_tokens", "max_completion_tokens"),
    ),
    Endpoint("/v1/completions", prompts=("prompt", "prompt_embeds"), batches=True),
    Endpoint("/v1/messages", prompts=("messages",)),
    Endpoint("/v1/responses", prompts=("input",), limits=("max_output_tokens",), stateful=True),
    Endpoint("/inference/v1/generate", prompts=("token_ids",), sampling="sampling_params"),
)

_ONE_LEG = (
    Endpoint("/v1/embeddings", prompts=("input", "messages"), legs=1),
    *(
        Endpoint(path, legs=1)
        for path in (
            "/v1/chat/completions/batch",
            "/v1/messages/count_tokens",
            "/v1/rerank",
            "/v2/rerank",
            "/rerank",
            "/v1/score",
            "/score",
            "/v1/classify",
            "/classify",
            "/v1/pooling",
            "/pooling",
            "/tokenize",
            "/detokenize",
            "/v1/audio/speech",
            "/v1/images/generations",
        )
    ),
)

ENDPOINTS = MappingProxyType({endpoint.path: endpoint for endpoint in (*_TWO_LEGS, *_ONE_LEG)})
"""Endpoints by path."""

MODELS_PATH = "/v1/models"
"""Answered by the router itself (`GET`), as is `/v1/models/{model}`."""


def split_path(path: str) -> tuple[str, str]:
    """Return a `:path` without its query string, and the query string with its question mark."""
    bare, mark, query = path.partition("?")
    return bare, mark + query
