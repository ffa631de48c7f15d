"""Answers of SGLang's own `/generate`."""

from collections.abc import Iterator, Mapping

from pdrouter.tools.simulation.answers import DONE, event
from pdrouter.tools.simulation.generation import Generation


class SglangForm:
    """One object for one choice of one prompt, a list of them for more."""

    def plain(self, generation: Generation) -> dict[str, object] | list[dict[str, object]]:
        """Give the texts of all choices."""
        last = len(generation.words) - 1
        items = [self._item(generation, choice, last) for choice in range(generation.choices)]
        return items[0] if len(items) == 1 else items

    def opening(self, generation: Generation) -> Iterator[bytes]:
        """Give nothing: the first event has a token."""
        del generation
        return iter(())

    def token(self, generation: Generation, index: int) -> Iterator[bytes]:
        """Give an event for each choice, each with all of its text so far."""
        for choice in range(generation.choices):
            item = self._item(generation, choice, index)
            yield event(item if generation.choices == 1 else {**item, "index": choice})

    def closing(self, generation: Generation) -> Iterator[bytes]:
        """Give the end mark."""
        del generation
        yield DONE

    def failure(self, envelope: Mapping[str, object]) -> Iterator[bytes]:
        """Give the error as data, and the end mark."""
        yield event(envelope)
        yield DONE

    def _item(self, generation: Generation, choice: int, index: int) -> dict[str, object]:
        complete = index == len(generation.words) - 1
        reason = {"type": generation.finish_reason} if complete else None
        return {
            "text": "".join(generation.words[: index + 1]),
            "output_ids": list(generation.token_ids[: index + 1]),
            "meta_info": {
                "id": f"{generation.request_id}_{choice}",
                "finish_reason": reason,
                "prompt_tokens": generation.request.prompt_tokens,
                "completion_tokens": index + 1,
                "cached_tokens": generation.cached_tokens,
            },
        }
