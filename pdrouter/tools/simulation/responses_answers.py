"""Answers of `/v1/responses`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from pdrouter.tools.simulation.answers import event
from pdrouter.tools.simulation.generation import Generation
from pdrouter.tools.simulation.logprobs import describe_token


class ResponsesForm:
    """`response`, and the named events of its stream."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give a finished `response`."""
        cut = generation.finish_reason == "length"
        return {
            **_response(generation, "incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [_item(generation, "completed")],
            "usage": _usage(generation),
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Announce the response, its only item and the only part of a text."""
        response = _response(generation, "in_progress")
        numbers = count()
        yield _named("response.created", next(numbers), response=response)
        yield _named("response.in_progress", next(numbers), response=response)
        yield _named(
            "response.output_item.added",
            next(numbers),
            output_index=0,
            item=_empty_item(generation),
        )
        if not _calls(generation):
            part = _part("")
            yield _named(
                "response.content_part.added", next(numbers), part=part, **_place(generation)
            )

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give one delta of text, or of the arguments of a call."""
        number, delta = _events_before_text(generation) + index, generation.words[index]
        place = _place(generation)
        if _calls(generation):
            yield _named("response.function_call_arguments.delta", number, delta=delta, **place)
            return
        logprobs = _logprobs(generation, index)
        yield _named("response.output_text.delta", number, delta=delta, logprobs=logprobs, **place)

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Finish the part, the item and the response, which brings the usage."""
        numbers = count(_events_before_text(generation) + len(generation.words))
        place, item = _place(generation), _item(generation, "completed")
        text = generation.text
        if _calls(generation):
            yield _named(
                "response.function_call_arguments.done",
                next(numbers),
                arguments=text,
                name=item["name"],
                **place,
            )
        else:
            part = _part(text, _logprobs(generation, *range(len(generation.words))))
            logprobs = part["logprobs"]
            yield _named(
                "response.output_text.done", next(numbers), text=text, logprobs=logprobs, **place
            )
            yield _named("response.content_part.done", next(numbers), part=part, **place)
        yield _named("response.output_item.done", next(numbers), output_index=0, item=item)
        response = self.plain(generation)
        yield _named("response.completed", next(numbers), response=response)

    def queued(self, generation: Generation) -> dict[str, object]:
        """Give a `response` that is to be made."""
        return _response(generation, "queued")

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give an `error` event."""
        yield event({"type": "error", **envelope}, "error")


def name_response(request_id: str) -> str:
    """Give the id of the answer to a request: its own, if that is one of an answer."""
    return request_id if request_id.startswith("resp_") else f"resp_{request_id}"


def _calls(generation: Generation) -> bool:
    return generation.request.plan.tool is not None


def _events_before_text(generation: Generation) -> int:
    return 3 if _calls(generation) else 4


def _named(name: str, number: int, /, **members: object) -> bytes:
    return event({"type": name, "sequence_number": number, **members}, name)


def _place(generation: Generation) -> dict[str, object]:
    place: dict[str, object] = {"item_id": _item_id(generation), "output_index": 0}
    return place if _calls(generation) else {**place, "content_index": 0}


def _item_id(generation: Generation) -> str:
    return f"{'fc' if _calls(generation) else 'msg'}_{generation.request_id}"


def _part(text: str, logprobs: Sequence[object] = ()) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _logprobs(generation: Generation, *indexes: int) -> list[object]:
    top = generation.request.top_logprobs
    return [] if top is None else [describe_token(generation, index, top) for index in indexes]


def _empty_item(generation: Generation) -> dict[str, object]:
    item = _item(generation, "in_progress")
    return {**item, "arguments": ""} if _calls(generation) else {**item, "content": []}


def _item(generation: Generation, status: str) -> dict[str, object]:
    head: dict[str, object] = {"id": _item_id(generation), "status": status}
    if _calls(generation):
        return {
            **head,
            "type": "function_call",
            "call_id": f"call_{generation.request_id}",
            "name": generation.request.plan.tool,
            "arguments": generation.text,
        }
    logprobs = _logprobs(generation, *range(len(generation.words)))
    return {
        **head,
        "type": "message",
        "role": "assistant",
        "content": [_part(generation.text, logprobs)],
    }


def _response(generation: Generation, status: str) -> dict[str, object]:
    return {
        "id": name_response(generation.request_id),
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
