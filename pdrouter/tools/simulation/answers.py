"""What the answers and streams of all APIs have in common."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from pdrouter.tools.simulation.generation import Generation

DONE = b"data: [DONE]\n\n"
MADE_UP = "simulated: the answer is made up"
"""What each answer says of itself, in a member where its API has one for it, and in a header."""


class AnswerForm(Protocol):
    """How one API spells an answer."""

    def plain(self, generation: Generation) -> Any:  # noqa: ANN401 - an object, or a list of them
        """Give the whole answer as a JSON value."""
        ...

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Give the events of a stream before its first token."""
        ...

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give the events of one token, for all choices."""
        ...

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Give the events of a stream after its last token."""
        ...

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give the events that end a stream that failed."""
        ...


def event(data: Mapping[str, object], name: str | None = None) -> bytes:
    """Spell one server-sent event."""
    heading = f"event: {name}\n" if name else ""
    return f"{heading}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def usage_of(generation: Generation) -> dict[str, object]:
    """Count tokens as the OpenAI APIs do.

    `cached_tokens` are those loaded from the prefill engine. As in vLLM the last prompt token is
    computed by the decode engine, so it is not among them.
    """
    prompt = generation.request.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": prompt + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def finish_reason_at(generation: Generation, index: int) -> str | None:
    """Give the finish reason that goes with a token: none before the last one."""
    return generation.finish_reason if index == len(generation.words) - 1 else None
