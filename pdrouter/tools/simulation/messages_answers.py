"""Answers of `/v1/messages`, Anthropic's API."""

import json
from collections.abc import Iterator, Mapping

from pdrouter.tools.simulation.answers import event
from pdrouter.tools.simulation.generation import Generation

_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}


class MessagesForm:
    """`message`, and the named events of its stream."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give a `message`."""
        return {
            **_message(generation),
            "content": [_block(generation)],
            "stop_reason": _STOP_REASONS[generation.finish_reason],
            "usage": _usage(generation, generation.completion_tokens),
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Start the message and its only block."""
        yield _named("message_start", message=_message(generation))
        block = _block(generation)
        block |= {name: empty for name, empty in (("text", ""), ("input", {})) if name in block}
        yield _named("content_block_start", index=0, content_block=block)

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give one delta of text, or of the arguments of a call."""
        text = generation.words[index]
        delta = {"type": "text_delta", "text": text}
        if generation.request.plan.tool is not None:
            delta = {"type": "input_json_delta", "partial_json": text}
        yield _named("content_block_delta", index=0, delta=delta)

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Stop the block, then the message with its usage."""
        yield _named("content_block_stop", index=0)
        yield _named(
            "message_delta",
            delta={
                "stop_reason": _STOP_REASONS[generation.finish_reason],
                "stop_sequence": None,
            },
            usage=_usage(generation, generation.completion_tokens),
        )
        yield _named("message_stop")

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give an `error` event."""
        yield _named("error", **envelope)


def _named(name: str, **members: object) -> bytes:
    return event({"type": name, **members}, name)


def _message(generation: Generation) -> dict[str, object]:
    return {
        "id": f"chatcmpl-{generation.request_id}",
        "type": "message",
        "role": "assistant",
        "model": generation.request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(generation, 0),
    }


def _block(generation: Generation) -> dict[str, object]:
    tool = generation.request.plan.tool
    if tool is None:
        return {"type": "text", "text": generation.text}
    # What a limit has cut off has no arguments that could be read.
    complete = generation.finish_reason == "tool_calls"
    arguments = json.loads(generation.text) if complete else {}
    identity = f"toolu_{generation.request_id}"
    return {"type": "tool_use", "id": identity, "name": tool, "input": arguments}


def _usage(generation: Generation, output_tokens: int) -> dict[str, object]:
    """Count tokens as Anthropic does: cached ones apart."""
    return {
        "input_tokens": generation.request.prompt_tokens - generation.cached_tokens,
        "output_tokens": output_tokens,
        "cache_read_input_tokens": generation.cached_tokens,
        "cache_creation_input_tokens": 0,
    }
