"""Lengths of prompts by the models' own tokenizers, where the operator gives them."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pdrouter.openai.prompt_text import extract_text
from pdrouter.openai.request import InferenceRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ANY_MODEL = "*"
_SAMPLE_CHARACTERS = 256 * 1024
"""How much of a prompt is tokenized; the rest is taken to be like it."""


class TokenizerUnusable(Exception):
    """A tokenizer cannot be loaded; the message names the file."""


@dataclass(slots=True)
class TokenizerStats:
    """What counting has met.

    Attributes:
        prompts: prompts that were to be counted.
        late: those whose length was estimated, because counting took too long.
    """

    prompts: int = 0
    late: int = 0


class PromptTokenizers:
    """Counts the tokens of prompts. Use as an async context manager.

    A tokenizer takes milliseconds: it works in a thread, and does without the interpreter's lock.

    Attributes:
        stats: what counting has met.
    """

    def __init__(self, files: Mapping[str, Path], timeout_s: float, threads: int) -> None:
        """Load the tokenizers.

        Args:
            files: `tokenizer.json` by model; that of `*` is for all others.
            timeout_s: how long a request waits for its length.
            threads: how many prompts are counted at a time.

        Raises:
            TokenizerUnusable: a file is not a tokenizer's.
        """
        self._tokenizers = {model: load_tokenizer(path) for model, path in files.items()}
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(threads, "tokenizer")
        # What waits for a thread waits here, where nothing is left of it when its time is over: in
        # the queue of the threads it would stay, with its body.
        self._slots = asyncio.Semaphore(threads)
        self.stats = TokenizerStats()

    async def __aenter__(self) -> "PromptTokenizers":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def can_count(self, request: InferenceRequest) -> bool:
        """Return whether there is a tokenizer for a request."""
        return bool(self._tokenizers) and self._find(request) is not None

    async def count(self, request: InferenceRequest) -> int | None:
        """Return the tokens of a prompt; None if there is no tokenizer for it, or no time."""
        tokenizer = self._find(request)
        if tokenizer is None:
            return None
        self.stats.prompts += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
                return await asyncio.wrap_future(self._start(partial(_count, tokenizer, request)))
        except TimeoutError:
            self.stats.late += 1
            return None

    def _find(self, request: InferenceRequest) -> "Tokenizer | None":
        """Return what counts a prompt; one that is a list of token ids needs no tokenizer."""
        tokenizer = self._tokenizers.get(request.model) or self._tokenizers.get(ANY_MODEL)
        return tokenizer if request.listed_tokens is None else None

    def _start(self, count: Callable[[], int | None]) -> Future[int | None]:
        """Begin to count in a thread. Its slot is free once the thread is, whoever waits."""
        loop = asyncio.get_running_loop()

        def free_slot(_: object) -> None:
            with suppress(RuntimeError):  # The loop has ended meanwhile.
                loop.call_soon_threadsafe(self._slots.release)

        counting = self._threads.submit(count)
        counting.add_done_callback(free_slot)
        return counting


def load_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a `tokenizer.json`.

    Raises:
        TokenizerUnusable: there is none.
    """
    try:
        # Loaded where it is wanted: most installations do without.
        from tokenizers import Tokenizer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        message = "PDROUTER_TOKENIZERS needs the package pdrouter[tokenizer]"
        raise TokenizerUnusable(message) from error
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        message = f"PDROUTER_TOKENIZERS: {path} is not a tokenizer.json: {error}"
        raise TokenizerUnusable(message) from error
    # Files say to cut prompts off, or to fill them up, for training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _count(tokenizer: "Tokenizer", request: InferenceRequest) -> int | None:
    text = extract_text(request)
    if text is None:
        return None
    sample = text[:_SAMPLE_CHARACTERS]
    # Unlike `encode`, this lets go of the interpreter's lock.
    (encoding,) = tokenizer.encode_batch_fast([sample], add_special_tokens=False)
    return max(1, round(len(encoding) * len(text) / max(1, len(sample))))
