"""Answers of `/v1/responses`."""

from collections.abc import Iterator, Mapping
from itertools import count

from pdrouter.simulation.answers import event
from pdrouter.simulation.generation import Generation


class ResponsesForm:
    """`response`, and the named events of its stream."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give a finished `response`."""
        cut = generation.finish_reason == "length"
        return {
            **_response(generation, "incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [_item(generation, generation.text, "completed")],
            "usage": _usage(generation),
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Announce the response, its only item and the item's only part."""
        response = _response(generation, "in_progress")
        numbers = count()
        yield _named("response.created", next(numbers), response=response)
        yield _named("response.in_progress", next(numbers), response=response)
        yield _named(
            "response.output_item.added",
            next(numbers),
            output_index=0,
            item={**_item(generation, "", "in_progress"), "content": []},
        )
        yield _named(
            "response.content_part.added", next(numbers), part=_part(""), **_place(generation)
        )

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give one delta of text."""
        yield _named(
            "response.output_text.delta",
            _EVENTS_BEFORE_TEXT + index,
            delta=generation.words[index],
            logprobs=[],
            **_place(generation),
        )

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Finish the part, the item and the response, which brings the usage."""
        numbers = count(_EVENTS_BEFORE_TEXT + len(generation.words))
        place = _place(generation)
        text = generation.text
        yield _named("response.output_text.done", next(numbers), text=text, logprobs=[], **place)
        yield _named("response.content_part.done", next(numbers), part=_part(text), **place)
        yield _named(
            "response.output_item.done",
            next(numbers),
            output_index=0,
            item=_item(generation, text, "completed"),
        )
        response = self.plain(generation)
        yield _named("response.completed", next(numbers), response=response)

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give an `error` event."""
        yield event({"type": "error", **envelope}, "error")


_EVENTS_BEFORE_TEXT = 4


def _named(name: str, number: int, **members: object) -> bytes:
    return event({"type": name, "sequence_number": number, **members}, name)


def _place(generation: Generation) -> dict[str, object]:
    return {"item_id": _item_id(generation), "output_index": 0, "content_index": 0}


def _item_id(generation: Generation) -> str:
    return f"msg_{generation.request_id}"


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}


def _item(generation: Generation, text: str, status: str) -> dict[str, object]:
    return {
        "id": _item_id(generation),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_part(text)],
    }


def _response(generation: Generation, status: str) -> dict[str, object]:
    return {
        "id": f"resp_{generation.request_id}",
        "object": "response",
        "created_at": generation.created,
        "model": generation.request.model,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _usage(generation: Generation) -> dict[str, object]:
    prompt = generation.request.prompt_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": generation.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": generation.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + generation.completion_tokens,
    }
