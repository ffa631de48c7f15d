"""Which pods have which prefixes: found for all pods at once, bounded, and gone with the pod."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.load.cache_mirrors import BYTES_PER_BLOCK
from pdrouter.load.prefix_index import _BYTES_PER_ENTRY, PrefixIndex


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_index(
    max_bytes: int = 1 << 20, ttl_s: float = 60, clock: Clock | None = None
) -> PrefixIndex:
    return PrefixIndex(max_bytes, ttl_s, clock or Clock())


def test_the_longest_prefix_of_each_pod_is_found() -> None:
    index = make_index()
    index.add([1, 2, 3], "a")
    index.add([1, 2], "b")
    index.add([1, 9], "c")
    assert index.match([1, 2, 3, 4]) == {"a": 3, "b": 2, "c": 1}
    assert index.match([1, 2, 3]) == {"a": 3, "b": 2, "c": 1}
    assert index.match([2, 3]) == {"a": 2, "b": 1}
    assert index.match([7]) == {}
    assert index.match([]) == {}


def test_a_pod_that_is_gone_is_not_found_and_neither_is_its_successor() -> None:
    index = make_index()
    index.add([1, 2], "a")
    index.forget("a")
    index.forget("a")
    assert index.match([1, 2]) == {}
    index.add([5], "b")
    assert index.match([1, 2]) == {}
    assert index.match([5]) == {"b": 1}


def test_a_place_is_used_again_only_when_nothing_remembers_the_pod_before() -> None:
    clock = Clock()
    index = make_index(ttl_s=10, clock=clock)
    index.add([1], "a")
    index.forget("a")
    for turn in range(1, 6):
        # Somebody keeps the block alive while pods come and go.
        index.add([1], "keeper")
        index.add([turn + 100], f"pod-{turn}")
        index.forget(f"pod-{turn}")
        assert index.match([1]) == {"keeper": 1}
        clock.now += 5


def test_a_group_is_not_found_by_the_name_of_a_pod_that_is_gone() -> None:
    clock = Clock()
    index = make_index(ttl_s=10, clock=clock)
    index.add([1], "a")
    index.add([1], "b")
    assert index.match([1]) == {"a": 1, "b": 1}
    index.forget("b")
    for _ in range(4):
        clock.now += 5
        index.add([1], "a")
    # It gets the place that was b's.
    index.add([1], "c")
    assert index.match([1]) == {"a": 1, "c": 1}


def test_more_groups_than_are_kept_are_found() -> None:
    index = make_index()
    for pod in range(10):
        for number in range(1 << 10):
            if number >> pod & 1:
                index.add([number], f"pod-{pod}")
    for number in [*range(1 << 10)] * 2:
        assert index.match([number]) == {f"pod-{pod}": 1 for pod in range(10) if number >> pod & 1}


def test_what_nobody_uses_is_forgotten() -> None:
    clock = Clock()
    index = make_index(ttl_s=10, clock=clock)
    index.add([1], "a")
    index.add([2], "a")
    for _ in range(4):
        clock.now += 5
        index.add([2], "a")
    assert index.match([1]) == {}
    assert index.match([2]) == {"a": 1}
    clock.now += 10
    index.match([])
    clock.now += 10
    assert index.match([2]) == {}


def test_what_a_pod_failed_to_compute_is_taken_back_but_not_what_it_had() -> None:
    index = make_index()
    assert index.add([1, 2], "a") == [1, 2]
    new = index.add([1, 2, 3, 4], "a")
    assert new == [3, 4]
    index.add([1, 2, 3, 4], "b")
    index.discard(new, "a")
    assert index.match([1, 2, 3, 4]) == {"a": 2, "b": 4}
    index.discard([1], "nobody")


def test_prefixes_are_forgotten_as_fast_as_engines_evict_them() -> None:
    index = PrefixIndex(1 << 20, 1e9, Clock(), lambda uids: 10_000.0 * len(uids))
    index.add([1], "a", 100)
    for number in range(200):
        index.add([100 + number], "a", 100)
    assert index.match([1]) == {}
    assert index.match([299]) == {"a": 1}


def test_memory_is_bounded() -> None:
    index = make_index(max_bytes=120 * 100)
    for block in range(10_000):
        index.add([block], "a")
        assert len(index) <= 100
    assert index.match([9_999]) == {"a": 1}


def make_index_of(blocks: int) -> PrefixIndex:
    """Return an index of which one generation holds so many blocks."""
    return make_index(max_bytes=blocks * (2 * _BYTES_PER_ENTRY + BYTES_PER_BLOCK))


def test_a_prompt_that_comes_again_makes_nobody_forget_another() -> None:
    index, long, other = make_index_of(1000), range(600), range(10_000, 10_300)
    index.add(other, "b")
    for _ in range(4):
        index.add(long, "a")
    assert index.match(other) == {"b": 300}
    assert index.match(long) == {"a": 600}


def test_a_prompt_that_begins_like_one_before_needs_room_for_its_end_only() -> None:
    index, other = make_index_of(1000), range(10_000, 10_300)
    index.add(other, "b")
    for turn in range(600, 700, 10):
        assert len(index.add(range(turn), "a")) == (600 if turn == 600 else 10)
    assert index.match(other) == {"b": 300}


def test_of_a_prompt_that_is_too_long_its_beginning_is_kept() -> None:
    index, blocks = make_index_of(10), range(5000)
    assert index.add(blocks, "a") == list(range(10))
    assert index.match(blocks) == {"a": 10}
    assert len(index) == 10


def test_what_was_taken_back_before_the_end_of_another_prompt_is_written_again() -> None:
    index = make_index()
    new = index.add([1, 2, 3], "a")
    index.add([1, 2, 3, 4], "a")
    index.discard(new, "a")
    assert index.match([1, 2, 3, 4]) == {}
    assert index.add([1, 2, 3, 4], "a") == [1, 2, 3]
    assert index.match([1, 2, 3, 4]) == {"a": 4}


def test_many_pods_cost_no_more_entries() -> None:
    index = make_index()
    for number in range(300):
        index.add([1, 2, 3], f"pod-{number}")
    assert len(index) == 3
    assert index.match([1, 2, 3]) == {f"pod-{number}": 3 for number in range(300)}


def test_what_was_taken_back_is_missed_also_when_another_pod_brings_the_rest_back() -> None:
    clock = Clock()
    index = make_index(ttl_s=10, clock=clock)
    new = index.add([1, 2], "b")
    index.add([1, 2, 3], "b")
    index.discard(new, "b")
    clock.now += 5
    index.add([1, 2, 3], "a")
    assert index.add([1, 2, 3], "b") == [1, 2]
    assert index.match([1, 2, 3]) == {"a": 3, "b": 3}


PROMPTS = st.lists(st.integers(0, 2), max_size=5)


def hash_blocks(prompt: Sequence[int]) -> list[int]:
    """Return a number for each block and all before it."""
    return list(accumulate(prompt, lambda state, block: state * 10 + block + 1, initial=0))[1:]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "take back", "turn"]), st.sampled_from("abc"), PROMPTS),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)
def test_each_pod_has_what_it_got_and_was_not_taken_back(
    actions: list[tuple[str, str, list[int]]],
) -> None:
    clock = Clock()
    index = make_index(ttl_s=10, clock=clock)
    # What each pod has got since the last turn, and in the time before.
    young, old = defaultdict[str, set[int]](set), defaultdict[str, set[int]](set)
    taken: list[tuple[list[int], str]] = []
    for action, uid, prompt in actions:
        blocks = hash_blocks(prompt)
        if action == "add":
            new = index.add(blocks, uid)
            assert new == [block for block in blocks if block not in young[uid] | old[uid]]
            taken.append((new, uid))
            # An entry moves on with all of its pods.
            for pod in "abc":
                young[pod] |= old[pod].intersection(blocks)
                old[pod].difference_update(blocks)
            young[uid].update(blocks)
        elif action == "take back" and taken:
            failed, owner = taken.pop(len(prompt) % len(taken))
            index.discard(failed, owner)
            young[owner].difference_update(failed)
            old[owner].difference_update(failed)
        elif action == "turn":
            clock.now += 5
            young, old = defaultdict(set), young
        expected = {
            pod: count
            for pod in "abc"
            if (count := len([*takewhile((young[pod] | old[pod]).__contains__, blocks)]))
        }
        assert index.match(blocks) == expected


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "forget", "match", "later"]),
        st.sampled_from("abc"),
        PROMPTS,
    ),
    max_size=40,
)


@given(ACTIONS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_no_pod_is_found_that_is_gone_or_never_had_the_block(
    actions: list[tuple[str, str, list[int]]],
) -> None:
    clock = Clock()
    index = PrefixIndex(120 * 4, 10, clock)
    had: dict[str, set[int]] = {}
    for action, uid, prompt in actions:
        blocks = hash_blocks(prompt)
        if action == "add":
            index.add(blocks, uid)
            had.setdefault(uid, set()).update(blocks)
        elif action == "forget":
            index.forget(uid)
            had.pop(uid, None)
        elif action == "later":
            clock.now += 3
        for found, length in index.match(blocks).items():
            assert 0 < length <= len(blocks)
            assert set(blocks[:length]) <= had[found]
        assert len(index) <= 4
