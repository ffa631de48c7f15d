"""What prefill engines say of their caches, and what the index of prefixes learns from it."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pdrouter.load.cached_prefixes import CachedPrefixes
from pdrouter.load.proofs import Proofs
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.serving.record import RequestRecord


class CacheGuess(msgspec.Struct, frozen=True):
    """What was thought of a pod's cache when a prompt was sent there.

    Attributes:
        prefix: the blocks of the prompt.
        recalled: what the pod was known to have of them.
        new: those that it was not expected to have.
    """

    prefix: PromptPrefix
    recalled: Sequence[int]
    new: Sequence[int]


class CacheObserver(Protocol):
    """Is told where the index was wrong. Must not raise."""

    def prefixes_corrected(self, record: RequestRecord) -> None:
        """The index has learnt from the prefill leg of a request that it was wrong."""


class CacheReports:
    """Puts the index right by what engines say in `usage`. One for the whole process.

    They may say nothing at all of their cache, or nothing where nothing was cached (vLLM): so no
    number means none only on a path on which the pod has said one before.
    """

    def __init__(
        self, prefixes: CachedPrefixes, observer: CacheObserver, proofs: Proofs | None = None
    ) -> None:
        """Set up.

        Args:
            prefixes: the index.
            observer: is told where it was wrong.
            proofs: remembers which pods tell; None for a memory of its own.
        """
        self._prefixes = prefixes
        self._observer = observer
        self._proofs = proofs or Proofs()

    def guess(self, prefix: PromptPrefix, uid: str, tokens: int) -> CacheGuess:
        """Count a prompt as cached where it is about to be sent; return what was thought before.

        Args:
            prefix: its blocks.
            uid: the pod.
            tokens: how many of its tokens the pod is to compute.
        """
        hashes, prefixes = prefix.hashes, self._prefixes
        return CacheGuess(prefix, prefixes.recall(hashes, uid), prefixes.add(hashes, uid, tokens))

    def take(self, guess: CacheGuess, answer: LegAnswer, path: str, record: RequestRecord) -> None:
        """Learn from a leg that a pod has carried out.

        Args:
            guess: what was thought when it was sent.
            answer: its answer.
            path: the path of the request.
            record: learns what was wrong.
        """
        prefix, new = guess.prefix, guess.new
        uid, usage = answer.pod.uid, answer.usage
        if usage is None or not prefix.hashes:
            return
        cached, tokens = usage.cached_tokens, usage.prompt_tokens
        if cached is not None:
            self._proofs.note_told(uid, path)
        elif not self._proofs.has_told(uid, path):
            return
        least, most = prefix.count_cached(cached or 0, tokens)
        record.prefixes_gone = self._prefixes.confirm(prefix.hashes, uid, guess.recalled, most)
        if new:
            record.prefixes_found = len(set(prefix.hashes[:least]).intersection(new))
        if record.prefixes_gone or record.prefixes_found:
            self._observer.prefixes_corrected(record)
