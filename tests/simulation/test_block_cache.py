import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing.cluster.block_cache import Allocation, BlockCache
from benchmarks.routing.cluster.workload import make_prompt
from pdrouter.openai.prompt_prefix import PromptPrefix


def compute(cache: BlockCache, prompt: PromptPrefix) -> None:
    """Let the prompt be computed and handed over at once."""
    allocation = allocate(cache, prompt)
    cache.store(allocation)
    cache.release(allocation)


def allocate(cache: BlockCache, prompt: PromptPrefix) -> Allocation:
    allocation = cache.allocate(prompt)
    assert allocation is not None
    return allocation


def test_blocks_can_be_hit_only_after_they_are_computed() -> None:
    cache = BlockCache(10 * 512)
    prompt = make_prompt((1, 2), 1100)
    first = allocate(cache, prompt)

    assert allocate(cache, prompt).cached == 0
    cache.store(first)
    assert allocate(cache, prompt).cached == 2


@pytest.mark.parametrize(("tokens", "cached"), [(1024, 1), (1025, 2)])
def test_the_last_token_is_always_computed(tokens: int, cached: int) -> None:
    cache = BlockCache(10 * 512)
    prompt = make_prompt((1, 2, 3), tokens)
    compute(cache, prompt)

    assert allocate(cache, prompt).cached == cached


def test_the_least_recently_used_blocks_are_evicted_first_and_ends_before_beginnings() -> None:
    cache = BlockCache(4 * 512)
    compute(cache, make_prompt((1, 2), 1024))
    compute(cache, make_prompt((3, 4), 1024))
    compute(cache, make_prompt((5,), 512))

    assert [block in cache for block in (1, 2, 3, 4, 5)] == [True, False, True, True, True]


def test_using_a_prefix_keeps_it() -> None:
    cache = BlockCache(4 * 512)
    compute(cache, make_prompt((1,), 512))
    compute(cache, make_prompt((2,), 512))
    compute(cache, make_prompt((1, 3), 1024))
    compute(cache, make_prompt((4, 5), 1024))

    assert 1 in cache
    assert 2 not in cache


def test_blocks_that_wait_for_their_transfer_are_not_evicted() -> None:
    cache = BlockCache(4 * 512)
    held = allocate(cache, make_prompt((1, 2, 3), 1536))
    cache.store(held)

    assert cache.allocate(make_prompt((4, 5), 1024)) is None
    cache.release(held)
    assert cache.allocate(make_prompt((4, 5), 1024)) is not None


def test_what_is_only_cached_does_not_count_as_used() -> None:
    cache = BlockCache(4 * 512)
    held = allocate(cache, make_prompt((1, 2), 1024))
    cache.store(held)
    assert cache.usage == 0.5

    cache.release(held)
    assert cache.usage == 0.0


prompts = st.builds(
    lambda family, tokens: make_prompt(range(family * 100, family * 100 + 20), tokens),
    st.integers(0, 3),
    st.integers(1, 8 * 512),
)


@given(st.lists(st.tuples(prompts, st.integers(0, 3)), max_size=40))
def test_memory_is_never_exceeded_and_all_of_it_comes_back(
    steps: list[tuple[PromptPrefix, int]],
) -> None:
    cache = BlockCache(12 * 512)
    held: list[Allocation] = []
    for prompt, releases in steps:
        allocation = cache.allocate(prompt)
        if allocation is not None:
            held.append(allocation)
            assert 0 <= cache.held <= cache.capacity
        for _ in range(min(releases, len(held))):
            finished = held.pop(0)
            cache.store(finished)
            cache.release(finished)
    for left in held:
        cache.store(left)
        cache.release(left)
    assert cache.held == 0
