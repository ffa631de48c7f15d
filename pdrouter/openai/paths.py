"""The request paths that are served, and what a request on each looks like."""

from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from pdrouter.nearest import find_nearest


class Forms(Enum):
    """Whether bodies are multipart forms."""

    NEVER = auto()
    ALLOWED = auto()
    ALWAYS = auto()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the API.

    Attributes:
        path: path without query string.
        prompts: members of which one must be there. Each is a string or a list that is not empty.
        batches: whether a list in one of `prompts` is several prompts, not one (`["a", "b"]`).
        limits: members that limit the number of output tokens; none where there are no such tokens.
        limit_required: whether engines refuse requests without a limit.
        sampling: the object that holds limits and sampling options; None where they are top-level.
        legs: 2 where a request may be split into a prefill and a decode leg, else 1.
        stateful: whether answers are kept by the engine unless the request says otherwise.
        forms: whether a body is JSON, or may or must be a multipart form.
    """

    path: str
    prompts: tuple[str, ...] = ()
    batches: bool = False
    limits: tuple[str, ...] = ("max_tokens",)
    limit_required: bool = False
    sampling: str | None = None
    legs: int = 2
    stateful: bool = False
    forms: Forms = Forms.NEVER


_TWO_LEGS = (
    Endpoint(
        "/v1/chat/completions",
        prompts=("messages",),
        limits=("max_tokens", "max_completion_tokens"),
    ),
    Endpoint("/v1/completions", prompts=("prompt", "prompt_embeds"), batches=True),
    Endpoint("/v1/messages", prompts=("messages",), limit_required=True),
    Endpoint("/v1/responses", prompts=("input",), limits=("max_output_tokens",), stateful=True),
    Endpoint("/inference/v1/generate", prompts=("token_ids",), sampling="sampling_params"),
    # SGLang's own.
    Endpoint(
        "/generate",
        prompts=("text", "input_ids"),
        batches=True,
        limits=("max_new_tokens",),
        sampling="sampling_params",
    ),
)

_ONE_LEG = (
    Endpoint("/v1/embeddings", prompts=("input", "messages"), limits=(), legs=1),
    Endpoint("/v1/chat/completions/batch", legs=1),
    *(
        Endpoint(path, limits=(), legs=1)
        for path in (
            "/v1/chat/completions/render",
            "/v1/completions/render",
            "/v1/messages/count_tokens",
            "/v2/embed",
            "/v1/rerank",
            "/v2/rerank",
            "/rerank",
            "/v1/score",
            "/score",
            "/generative_scoring",
            "/v1/classify",
            "/classify",
            "/v1/pooling",
            "/pooling",
            "/tokenize",
            "/detokenize",
            "/v1/audio/speech",
            "/v1/images/generations",
            "/v1/video/generations",
            # SGLang's.
            "/v1/decisions",
        )
    ),
    *(
        Endpoint(path, limits=("max_completion_tokens",), legs=1, forms=Forms.ALWAYS)
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations")
    ),
    *(
        Endpoint(path, limits=(), legs=1, forms=Forms.ALLOWED)
        for path in (
            "/v1/images/edits",
            "/v1/images/variations",
            # Of vLLM-Omni and of TensorRT-LLM: videos that are the answer itself.
            "/v1/videos/sync",
            "/v1/videos/generations",
        )
    ),
)

ENDPOINTS = MappingProxyType({endpoint.path: endpoint for endpoint in (*_TWO_LEGS, *_ONE_LEG)})
"""Endpoints by path."""

MODELS_PATH = "/v1/models"
"""Answered by the router itself (`GET`), as is `/v1/models/{model}`."""
HEALTH_PATH = "/health"
PING_PATH = "/ping"
VERSION_PATH = "/version"

_KNOWN = (*ENDPOINTS, MODELS_PATH, HEALTH_PATH, PING_PATH, VERSION_PATH)
_PREFIX = "/v1"
_COMPARED_LENGTH = 200


def find_right_path(path: str) -> str | None:
    """Return the path that was most likely meant by one that is not served; None if none is.

    Base URLs are written with `/v1`, without it or with it twice, with a slash at their end or
    with a gateway's own prefix.
    """
    parts = path[:_COMPARED_LENGTH].lower().split("/")
    wanted = "".join(f"/{part}" for part in parts if part)
    alike = [known for known in _KNOWN if wanted.endswith(known.removeprefix(_PREFIX))]
    if alike:
        return max(alike, key=lambda known: (wanted.endswith(known), len(known)))
    return find_nearest(wanted, _KNOWN)


def split_path(path: str) -> tuple[str, str]:
    """Return a `:path` without its query string, and the query string with its question mark."""
    bare, mark, query = path.partition("?")
    return bare, mark + query
