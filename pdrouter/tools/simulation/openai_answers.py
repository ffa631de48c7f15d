"""Answers of `/v1/chat/completions`, `/v1/completions` and `/inference/v1/generate`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from pdrouter.tools.simulation.answers import DONE, MADE_UP, event, finish_reason_at, usage_of
from pdrouter.tools.simulation.generation import Generation
from pdrouter.tools.simulation.logprobs import chat_logprobs, completion_logprobs
from pdrouter.tools.simulation.token_ids import token_ids_of


class _ChunkedForm(ABC):
    """Streams of unnamed chunks that end with `[DONE]`."""

    @abstractmethod
    def _head(self, generation: Generation) -> dict[str, object]:
        """Give the members that are the same in every chunk."""

    @abstractmethod
    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        """Give the members of a choice that hold one token."""

    def _chunk(
        self, generation: Generation, choices: list[dict[str, object]], usage: object = None
    ) -> bytes:
        chunk = {**self._head(generation), "choices": choices}
        if generation.request.include_usage:
            chunk["usage"] = usage
        return event(chunk)

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Give nothing: the first chunk has a token."""
        del generation
        return iter(())

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give a chunk for each choice."""
        finish_reason = finish_reason_at(generation, index)
        for choice in range(generation.choices):
            content = self._choice(generation, index)
            yield self._chunk(
                generation, [{"index": choice, **content, "finish_reason": finish_reason}]
            )

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Give the usage, if the client wants it, and the end mark."""
        if generation.request.include_usage:
            yield self._chunk(generation, [], usage_of(generation))
        yield DONE

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give the error as data, and the end mark, as vLLM does in mid-stream."""
        yield event(envelope)
        yield DONE


class ChatForm(_ChunkedForm):
    """`chat.completion` and its chunks."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give a `chat.completion`."""
        request = generation.request
        ids = {"prompt_token_ids": token_ids_of(request)} if request.return_token_ids else {}
        return {
            **self._head(generation),
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice,
                    "message": _message(generation),
                    "logprobs": chat_logprobs(generation, *range(len(generation.words))),
                    "finish_reason": generation.finish_reason,
                }
                for choice in range(generation.choices)
            ],
            "usage": usage_of(generation),
            **ids,
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Give each choice its role."""
        for choice in range(generation.choices):
            delta = {"role": "assistant", "content": ""}
            yield self._chunk(
                generation, [{"index": choice, "delta": delta, "finish_reason": None}]
            )

    def _head(self, generation: Generation) -> dict[str, object]:
        return {
            "id": f"chatcmpl-{generation.request_id}",
            "object": "chat.completion.chunk",
            "created": generation.created,
            "model": generation.request.model,
            "system_fingerprint": MADE_UP,
        }

    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        tool, text = generation.request.plan.tool, generation.words[index]
        if tool is None:
            delta: dict[str, object] = {"content": text}
        elif index:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        else:
            delta = {"tool_calls": [{"index": 0, **_call(generation, tool, text)}]}
        return {"delta": delta, "logprobs": chat_logprobs(generation, index)}


def _message(generation: Generation) -> dict[str, object]:
    tool = generation.request.plan.tool
    if tool is None:
        return {"role": "assistant", "content": generation.text}
    calls = [_call(generation, tool, generation.text)]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _call(generation: Generation, tool: str, arguments: str) -> dict[str, object]:
    function = {"name": tool, "arguments": arguments}
    return {"id": f"call_{generation.request_id}", "type": "function", "function": function}


class CompletionsForm(_ChunkedForm):
    """`text_completion`, plain and in chunks."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give a `text_completion`."""
        return {
            **self._head(generation),
            "choices": [
                {
                    "index": choice,
                    "text": generation.text,
                    "logprobs": completion_logprobs(generation, *range(len(generation.words))),
                    "finish_reason": generation.finish_reason,
                }
                for choice in range(generation.choices)
            ],
            "usage": usage_of(generation),
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def _head(self, generation: Generation) -> dict[str, object]:
        return {
            "id": f"cmpl-{generation.request_id}",
            "object": "text_completion",
            "created": generation.created,
            "model": generation.request.model,
            "system_fingerprint": MADE_UP,
        }

    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        logprobs = completion_logprobs(generation, index)
        return {"text": generation.words[index], "logprobs": logprobs}


class GenerateForm(_ChunkedForm):
    """Tokens in, tokens out."""

    def plain(self, generation: Generation) -> dict[str, object]:
        """Give the token ids of all choices."""
        return {
            **self._head(generation),
            "choices": [
                {
                    "index": choice,
                    "token_ids": list(generation.token_ids),
                    "logprobs": chat_logprobs(generation, *range(len(generation.words))),
                    "finish_reason": generation.finish_reason,
                }
                for choice in range(generation.choices)
            ],
            "prompt_logprobs": None,
            "kv_transfer_params": generation.kv_transfer_params,
        }

    def _head(self, generation: Generation) -> dict[str, object]:
        return {"request_id": generation.request_id}

    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        logprobs = chat_logprobs(generation, index)
        return {"token_ids": [generation.token_ids[index]], "logprobs": logprobs}
