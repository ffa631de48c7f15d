"""Logarithmic probabilities of tokens, as made up as the tokens, but not implausible."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from pdrouter.tools.simulation.generation import Generation, word


def chat_logprobs(generation: Generation, *indexes: int) -> Mapping[str, Any] | None:
    """Tell of some tokens as chat completions do; None if the request does not ask for it."""
    top = generation.request.top_logprobs
    if top is None:
        return None
    return {"content": [describe_token(generation, index, top) for index in indexes]}


def completion_logprobs(generation: Generation, *indexes: int) -> Mapping[str, Any] | None:
    """Tell of some tokens as completions do."""
    top = generation.request.top_logprobs
    if top is None:
        return None
    described = [describe_token(generation, index, top) for index in indexes]
    return {
        "tokens": [token["token"] for token in described],
        "token_logprobs": [token["logprob"] for token in described],
        "top_logprobs": [
            {one["token"]: one["logprob"] for one in (token, *token["top_logprobs"])}
            for token in described
        ],
        "text_offset": [len("".join(generation.words[:index])) for index in indexes],
    }


def describe_token(generation: Generation, index: int, top: int) -> dict[str, Any]:
    """Tell of one token, and of this many that the model might have taken, the likeliest first."""
    text = generation.words[index]
    alternatives = [(text, 0), *((_alternative(text, rank), rank) for rank in range(1, top))][:top]
    return {
        **_entry(text, generation.request.digest, index, 0),
        "top_logprobs": [
            _entry(other, generation.request.digest, index, rank) for other, rank in alternatives
        ],
    }


def _alternative(text: str, rank: int) -> str:
    space = " " if text.startswith(" ") else ""
    return space + word(hashlib.sha256(text.encode()).hexdigest(), rank).strip()


def _entry(text: str, digest: str, index: int, rank: int) -> dict[str, Any]:
    """Give the token taken more than half of the probability, and each other half of the rest."""
    seed = hashlib.sha256(f"{digest}:{index}".encode()).digest()
    taken = 0.5 + 0.49 * seed[0] / 255
    probability = taken if rank == 0 else (1 - taken) * 0.5**rank
    return {
        "token": text,
        "logprob": math.log(probability),
        "bytes": list(text.encode("utf-8", "surrogatepass")),
    }
