"""Prompts are counted by real tokenizers, and no request waits long for that."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exchanges import Bench, request_body, request_headers
from factories import MODEL, make_request
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pdrouter.serving import tokenizers as tokenizing
from pdrouter.serving.tokenizers import PromptTokenizers, TokenizerUnusable

PATH = "/v1/completions"
WORDS = "the quick brown fox jumps over the lazy dog "


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token for each of the words, which cuts prompts off after eight."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=["?"]))
    tokenizer.enable_truncation(8)
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
async def tokenizers(file: Path) -> AsyncIterator[PromptTokenizers]:
    async with PromptTokenizers({MODEL: file}, 60, 1) as tokenizers:
        yield tokenizers


@pytest.mark.parametrize("words", [1, 9, 9_000])
async def test_each_token_counts(tokenizers: PromptTokenizers, words: int) -> None:
    prompt = " ".join((WORDS * 1000).split()[:words])
    assert await tokenizers.count(make_request(PATH, prompt=prompt)) == words


async def test_of_a_huge_prompt_a_part_is_counted(tokenizers: PromptTokenizers) -> None:
    counted = await tokenizers.count(make_request(PATH, prompt=WORDS * 50_000))
    assert counted == pytest.approx(9 * 50_000, rel=0.001)


@pytest.mark.parametrize("prompt", [[1, 2, 3], ""])
async def test_token_ids_and_nothing(tokenizers: PromptTokenizers, prompt: Any) -> None:
    counted = await tokenizers.count(make_request(PATH, prompt=prompt))
    assert counted == (None if prompt else 1)


async def test_each_model_has_its_own_and_the_others_that_of_the_star(file: Path) -> None:
    request = make_request(PATH, model="other", prompt=WORDS)
    async with PromptTokenizers({MODEL: file}, 60, 1) as tokenizers:
        assert await tokenizers.count(request) is None
    async with PromptTokenizers({"*": file}, 60, 1) as tokenizers:
        assert await tokenizers.count(request) == 9


async def test_a_request_does_not_wait_for_a_busy_thread(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    count = tokenizing._count

    def count_late(*arguments: Any) -> int | None:
        assert go_on.wait(60)
        return count(*arguments)

    monkeypatch.setattr(tokenizing, "_count", count_late)
    request = make_request(PATH, prompt=WORDS)
    async with PromptTokenizers({MODEL: file}, 0.05, 1) as tokenizers:
        assert await asyncio.gather(*(tokenizers.count(request) for _ in range(3))) == [None] * 3
        assert (tokenizers.stats.prompts, tokenizers.stats.late) == (3, 3)
        go_on.set()
    async with PromptTokenizers({MODEL: file}, 60, 1) as tokenizers:
        assert await tokenizers.count(request) == 9


@pytest.mark.parametrize("content", [None, "no json", "{}"])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TokenizerUnusable, match=r"is not a tokenizer\.json"):
        PromptTokenizers({MODEL: path}, 1, 1)


async def test_the_count_is_what_pods_are_chosen_by(file: Path) -> None:
    async with PromptTokenizers({"m": file}, 60, 1) as tokenizers:
        bench = Bench(tokenizers=tokenizers)
        body = json.loads(json.dumps({"model": "m", "prompt": WORDS * 20}))
        await bench.tell(request_headers(PATH), request_body(body))
        (post,) = bench.prefill.posts
        assert post.tokens == 180
        bench.close()
