"""Hashes of prompts: shared beginnings are told, and nothing else is shared."""

from typing import Any

import pytest
from factories import make_body, make_request

from pdrouter.load.prompt_length import TokenRatios
from pdrouter.openai.prompt_prefix import PromptPrefix, hash_prompt
from pdrouter.openai.usage import Usage, read_usage

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "You are a helpful assistant. " * 100}
QUESTION = {"role": "user", "content": "Why? " * 200}


def hash_chat(*messages: Any, **members: Any) -> PromptPrefix:
    return hash_prompt(make_request(CHAT, make_body(CHAT, messages=list(messages), **members)))


def count_shared(one: PromptPrefix, other: PromptPrefix) -> int:
    shared = 0
    for left, right in zip(one.hashes, other.hashes, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def test_a_conversation_that_grows_keeps_its_beginning() -> None:
    before = hash_chat(SYSTEM, QUESTION)
    after = hash_chat(SYSTEM, QUESTION, {"role": "assistant", "content": "So. " * 200})
    assert count_shared(before, after) == len(before.hashes)
    assert len(after.hashes) > len(before.hashes) > 10


def test_a_shared_system_prompt_is_a_shared_prefix() -> None:
    one = hash_chat(SYSTEM, QUESTION)
    other = hash_chat(SYSTEM, {"role": "user", "content": "Who? " * 200})
    assert 10 <= count_shared(one, other) < len(one.hashes)


@pytest.mark.parametrize(
    "members",
    [
        {"model": "other"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"cache_salt": "a"},
        {"chat_template_kwargs": {"thinking": True}},
    ],
)
def test_what_stands_before_the_messages_keeps_prompts_apart(members: dict[str, Any]) -> None:
    assert count_shared(hash_chat(SYSTEM), hash_chat(SYSTEM, **members)) == 0


@pytest.mark.parametrize("members", [{"temperature": 1}, {"max_tokens": 3}, {"stream": True}])
def test_what_does_not_shape_the_prompt_does_not_matter(members: dict[str, Any]) -> None:
    assert hash_chat(SYSTEM) == hash_chat(SYSTEM, **members)


def test_a_short_prompt_has_no_blocks() -> None:
    prefix = hash_chat({"role": "user", "content": "hi"})
    assert (prefix.hashes, prefix.ends) == ((), ())
    assert prefix.size > 0


def test_a_huge_prompt_has_a_bounded_number_of_blocks() -> None:
    prefix = hash_chat({"role": "user", "content": "x" * 8_000_000})
    assert len(prefix.hashes) < 1_200
    assert len(prefix.ends) == len(prefix.hashes)
    assert 0.99 < prefix.ends[-1] / prefix.size <= 1


@pytest.mark.parametrize("size", [4_096, 40_960, 65_536, 67_584, 1_048_576])
def test_a_block_counts_once_it_is_whole(size: int) -> None:
    frame = hash_chat({"role": "user", "content": ""}).size
    whole = hash_chat({"role": "user", "content": "x" * (size - frame)})
    short = hash_chat({"role": "user", "content": "x" * (size - frame - 1)})
    assert (whole.size, whole.ends[-1]) == (size, size)
    assert short.ends == whole.ends[:-1]
    assert short.hashes[:-1] == whole.hashes[:-2]


@pytest.mark.parametrize("place", [100, 5_000, 30_000, 65_000, 66_000, 300_000, 1_500_000])
def test_a_change_shows_from_its_block_on(place: int) -> None:
    text = "x" * 2_000_000
    before = hash_chat({"role": "user", "content": text})
    after = hash_chat({"role": "user", "content": text[:place] + "y" + text[place + 1 :]})
    frame = before.size - len(text)
    shared = count_shared(before, after)
    assert place < before.ends[shared]
    assert (0, *before.ends)[shared] <= place + frame
    pairs = zip(before.hashes[shared:], after.hashes[shared:], strict=True)
    assert all(left != right for left, right in pairs)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        (b'{"usage": {"prompt_tokens": 10}}', Usage(10, None)),
        (
            b'{"usage": {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}}',
            Usage(10, 4),
        ),
        (b'{"usage": {"prompt_tokens": 10, "prompt_tokens_details": null}}', Usage(10, None)),
        (b'{"usage": {"input_tokens": 7, "cache_read_input_tokens": 3}}', Usage(10, 3)),
        (
            b'{"usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}}}',
            Usage(7, 0),
        ),
        (b'{"usage": null}', None),
        (b'{"usage": {"prompt_tokens": -1}}', None),
        (b'{"usage": {"prompt_tokens": "many"}}', None),
        (b'{"usage": {"prompt_tokens": 1000000001}}', None),
        (b'{"usage": {"input_tokens": 0, "cache_read_input_tokens": 9}}', Usage(9, 9)),
        (
            b'{"usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 9}}}',
            Usage(7, 7),
        ),
        # Without usage, tokens are counted.
        (b'{"usage": null, "prompt_token_ids": [5, 6,7]}', Usage(3, None)),
        (b'{"prompt_token_ids": [5], "usage": {"prompt_tokens": 10}}', Usage(10, None)),
        (b'{"usage": {"prompt_tokens": "many"}, "prompt_token_ids": [5, 6]}', Usage(2, None)),
        (b'{"prompt_token_ids": []}', None),
        (b'{"prompt_token_ids": [[5], [6]]}', None),
        (b'{"prompt_token_ids": "5"}', None),
        (b"{}", None),
        (b"[]", None),
        (b"not json", None),
        (b'{"usage": {"prompt_tokens": \xff}}', None),
    ],
)
def test_usage_is_read_where_it_can_be(answer: bytes, usage: Usage | None) -> None:
    assert read_usage(answer) == usage


@pytest.mark.parametrize(("cached", "computed"), [(None, None), (0, 10), (4, 6), (10, 1), (99, 1)])
def test_at_least_one_token_is_computed(cached: int | None, computed: int | None) -> None:
    assert Usage(10, cached).count_computed() == computed


def test_the_size_of_a_token_is_learnt_for_each_model() -> None:
    ratios = TokenRatios()
    assert ratios.estimate("m", 400) == 100
    for _ in range(200):
        ratios.observe("m", 3000, 1000)
    assert ratios.estimate("m", 3000) == pytest.approx(1000, rel=0.02)
    assert ratios.estimate("other", 400) == 100
    assert ratios.estimate("m", 0) == 1
