"""Answers of `/v1/chat/completions`, `/v1/completions` and `/inference/v1/generate`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from pdrouter.simulation.answers import DONE, event, finish_reason_at, usage_of
from pdrouter.simulation.generation import Generation


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
        return {
            **self._head(generation),
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice,
                    "message": {"role": "assistant", "content": generation.text},
                    "logprobs": None,
                    "finish_reason": generation.finish_reason,
                }
                for choice in range(generation.choices)
            ],
            "usage": usage_of(generation),
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
        }

    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        return {"delta": {"content": generation.words[index]}, "logprobs": None}


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
                    "logprobs": None,
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
        }

    def _choice(self, generation: Generation, index: int) -> dict[str, object]:
        return {"text": generation.words[index], "logprobs": None}


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
                    "logprobs": None,
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
        return {"token_ids": [generation.token_ids[index]], "logprobs": None}
