"""Which decode pods have probably cached which conversations: prompts, and the answers to them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdrouter.bounded import make_room
from pdrouter.load.prefix_index import PrefixIndex

_MOST_ENDS = 16_384
_SMALL_INDEX, _TTL_S = 1024 * 1024, 1200.0
_ANSWER_SHARE = 0.5
"""The largest part of what follows on a prompt that its answer is taken for: a question comes after
it."""
_KEPT_SHARE = 0.4
"""Share of a pod's free memory that may have been written since, for a prompt to be there still."""


@dataclass(frozen=True, slots=True)
class _End:
    """Where a prompt has ended on a pod.

    Attributes:
        rest_tokens: tokens behind its last whole block, its answer among them.
        written: tokens that the pod had written until then.
    """

    rest_tokens: int
    written: float


class DecodedPrompts:
    """Prompts that decode pods have had in their KV memory, each with its answer.

    The router does not see answers. But a prompt that goes on where an earlier one ended is the
    next turn of its conversation, and begins with the answer: about as many tokens as that had.

    What requests need, and no more, is left of a decode pod's memory for its cache: it forgets as
    soon as others have written as much as is free.
    """

    __slots__ = ("_ends", "_index", "_written")

    def __init__(self, index: PrefixIndex | None = None) -> None:
        """Begin with none.

        Args:
            index: is to know the prompts; None for a small one.
        """
        if index is None:
            index = PrefixIndex(_SMALL_INDEX, _TTL_S, time.monotonic)
        self._index = index
        self._ends: dict[tuple[str, int], _End] = {}
        self._written: dict[str, float] = {}

    def add(
        self, hashes: Sequence[int], uid: str, *, rest_tokens: int, written_tokens: float
    ) -> None:
        """Note that a pod has answered a prompt.

        Args:
            hashes: its blocks.
            uid: the pod.
            rest_tokens: length of what lies behind the last of them, with the answer.
            written_tokens: tokens that the pod has written for this request, and in the same time
                for those of others.
        """
        written = self._written[uid] = self._written.get(uid, 0.0) + written_tokens
        if not hashes:
            return
        self._index.add(hashes, uid, round(written_tokens))
        key = uid, hashes[-1]
        self._ends.pop(key, None)
        make_room(self._ends, key, _MOST_ENDS)
        self._ends[key] = _End(rest_tokens, written)

    def expect(self, hashes: Sequence[int], uid: str, tokens: int) -> list[int]:
        """Note that a pod is about to have a prompt: a later request finds it there.

        Args:
            hashes: its blocks.
            uid: the pod.
            tokens: its length.

        Returns:
            The blocks that the pod was not known to have, for `discard`.
        """
        if not hashes:
            return []
        missing = len(hashes) - self._index.match(hashes).get(uid, 0)
        return self._index.add(hashes, uid, tokens * missing // len(hashes))

    def discard(self, hashes: Sequence[int], uid: str) -> None:
        """Note that a pod does not have these blocks: it has not served what was expected."""
        self._index.discard(hashes, uid)

    def match(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Return how many blocks of a prompt each pod has had; pods without any are absent."""
        return self._index.match(hashes)

    def count_cached(
        self, uid: str, last: int, tokens: int, left: int, free_tokens: float | None
    ) -> int:
        """Return how many tokens of a prompt a pod still has.

        Of blocks at which no prompt has ended there, nobody knows how long ago they were written.

        Args:
            uid: the pod.
            last: the last of the blocks that it has had.
            tokens: the tokens up to there.
            left: those behind.
            free_tokens: memory that its requests leave free; None if that is not known.
        """
        end = self._ends.get((uid, last))
        if end is None:
            return 0
        if free_tokens is not None:
            since = self._written.get(uid, 0.0) - end.written
            if since > _KEPT_SHARE * free_tokens:
                return 0
        return tokens + min(end.rest_tokens, int(left * _ANSWER_SHARE))

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone, or in which another engine runs."""
        self._index.forget(uid)
        self._written.pop(uid, None)
        for key in [key for key in self._ends if key[0] == uid]:
            del self._ends[key]
