"""What is inferred of a pod's cache from what it had, and had not, of the prompts it got."""

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.load import cache_mirrors
from pdrouter.load.cache_mirrors import CacheMirrors
from pdrouter.load.prefix_index import PrefixIndex


class LruCache:
    """An engine's cache: what was used least recently goes first, ends before beginnings."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self.blocks: dict[int, None] = {}

    def serve(self, hashes: Sequence[int]) -> int:
        """Compute a prompt; return how many of its first blocks were there."""
        found = 0
        while found < len(hashes) and hashes[found] in self.blocks:
            found += 1
        for block in hashes:
            self.blocks.pop(block, None)
        for block in reversed(hashes):
            self.blocks[block] = None
        while len(self.blocks) > self.size:
            del self.blocks[next(iter(self.blocks))]
        return found


def list_hashes(path: Sequence[int]) -> list[int]:
    """Return the blocks of a prompt that is a path in a tree: each stands for its beginning."""
    return [hash(tuple(path[: length + 1])) for length in range(len(path))]


def list_prompts(roots: Sequence[int]) -> st.SearchStrategy[list[int]]:
    """Return prompts that begin with one of these."""
    paths = st.tuples(st.sampled_from(roots), st.lists(st.integers(0, 2), max_size=4))
    return paths.map(lambda path: list_hashes([path[0], *path[1]]))


TRAFFIC = st.lists(
    st.tuples(list_prompts((0, 1, 2)), st.just(True))
    | st.tuples(list_prompts((7, 8, 9)), st.just(False)),
    max_size=80,
)
"""Prompts, and whether they go through this router; others send other prompts."""


@given(TRAFFIC, st.integers(5, 20))
@settings(max_examples=300)
def test_nothing_is_taken_for_gone_that_an_engine_has(
    traffic: list[tuple[list[int], bool]], size: int
) -> None:
    """However much others send there, of which this router knows nothing."""
    engine, mirrors = LruCache(size), CacheMirrors(10_000)
    for hashes, ours in traffic:
        if not ours:
            engine.serve(hashes)
            continue
        recalled = mirrors.recall(hashes, "p")
        had = set(engine.blocks)
        gone = mirrors.note(hashes, "p", recalled, engine.serve(hashes))
        assert had.isdisjoint(gone)


@given(TRAFFIC, st.integers(5, 20))
def test_all_is_gone_that_was_not_used_since_what_is(
    traffic: list[tuple[list[int], bool]], size: int
) -> None:
    engine, mirrors = LruCache(size), CacheMirrors(10_000)
    used: dict[int, int] = {}
    for turn, (hashes, ours) in enumerate(traffic):
        if not ours:
            engine.serve(hashes)
            continue
        recalled, found = mirrors.recall(hashes, "p"), engine.serve(hashes)
        mirrors.note(hashes, "p", recalled, found)
        if found < len(recalled):
            horizon = used[hashes[found]]
            for block, last in used.items():
                if last < horizon and block not in hashes:
                    assert not mirrors.recall([block], "p")
        used.update(dict.fromkeys(hashes, turn))


@given(TRAFFIC, st.integers(5, 20))
def test_an_index_that_is_told_claims_nothing_that_was_found_gone(
    traffic: list[tuple[list[int], bool]], size: int
) -> None:
    engine, index = LruCache(size), PrefixIndex(1 << 20, 60, lambda: 0.0)
    plain = PrefixIndex(1 << 20, 60, lambda: 0.0)
    for hashes, ours in traffic:
        if not ours:
            engine.serve(hashes)
            continue
        recalled = index.recall(hashes, "p")
        index.add(hashes, "p")
        plain.add(hashes, "p")
        index.confirm(hashes, "p", recalled, engine.serve(hashes))
        assert index.match(hashes) == {"p": len(hashes)}
    wrong = correct = 0
    for hashes, _ in traffic:
        has = sum(block in engine.blocks for block in hashes)
        claimed, usual = index.match(hashes).get("p", 0), plain.match(hashes).get("p", 0)
        assert claimed <= usual
        # Of what it gave up, the engine has nothing.
        assert min(has, usual) <= claimed
        wrong += claimed > has
        correct += usual > has
    assert wrong <= correct


def test_ends_of_a_prompt_go_before_its_beginning_and_others_stay() -> None:
    index = PrefixIndex(1 << 20, 60, lambda: 0.0)
    for hashes in ([1, 10, 11], [1, 20, 21], [1, 30, 31]):
        index.add(hashes, "p")
        index.confirm(hashes, "p", index.recall(hashes, "p"), 1)
    index.add([1, 20, 21], "other")
    recalled = index.recall([1, 20, 21], "p")
    # The second prompt is not there any more: nor is the first, which is older.
    assert index.confirm([1, 20, 21], "p", recalled, 1) == 2
    assert index.match([1, 10, 11]) == {"p": 1, "other": 1}
    assert index.match([1, 20, 21]) == {"p": 3, "other": 3}
    assert index.match([1, 30, 31]) == {"p": 3, "other": 1}


def test_what_is_found_as_expected_says_nothing_of_others() -> None:
    mirrors = CacheMirrors(100)
    mirrors.note([1, 2], "p", (), 0)
    mirrors.note([3, 4], "p", (), 0)
    assert mirrors.note([3, 4], "p", mirrors.recall([3, 4], "p"), 2) == []
    assert list(mirrors.recall([1, 2], "p")) == [1, 1]
    assert list(mirrors.recall([1, 2], "q")) == []


def test_much_that_is_gone_goes_in_several_steps() -> None:
    mirrors, most = CacheMirrors(10**6), cache_mirrors._MOST_FORGOTTEN
    mirrors.note(range(most * 2), "p", (), 0)
    mirrors.note([-1], "p", (), 0)
    recalled = mirrors.recall([-1], "p")
    steps = [len(mirrors.note([-1], "p", recalled, 0)), len(mirrors.note([-2], "p", (), 0))]
    assert steps == [most, most]
    assert mirrors.note([-3], "p", (), 0) == []


def test_memory_is_bounded_and_goes_with_the_pod() -> None:
    mirrors = CacheMirrors(100)
    for pod in ("a", "b"):
        for number in range(1000):
            mirrors.note([number, number + 1000], pod, (), 0)
            assert len(mirrors) <= 100
    # Both have room, for what they have used last.
    assert mirrors.recall([999], "a")
    assert mirrors.recall([999], "b")
    mirrors.forget("a")
    mirrors.forget("b")
    mirrors.forget("b")
    assert len(mirrors) == 0


class WatchedTurns(dict[int, int]):
    """Counts how often it is looked through from its front."""

    def __init__(self, turns: Mapping[int, int]) -> None:
        super().__init__(turns)
        self.looks: list[int] = []

    def items(self) -> Any:
        self.looks.append(len(self))
        return super().items()


def test_a_mirror_is_looked_through_only_while_something_in_it_may_be_gone() -> None:
    """Where much has been taken from the front of a dictionary, a look from there is long."""
    mirrors = CacheMirrors(100_000)
    mirrors.note([1, 2, 3], "p", (), 0)
    mirror = mirrors._mirrors["p"]
    turns = mirror.turns = WatchedTurns(mirror.turns)
    for first in range(10, 100, 10):
        mirrors.note(range(first, first + 5), "p", (), 0)
    assert not turns.looks
    hashes = range(50, 55)
    gone = mirrors.note(hashes, "p", mirrors.recall(hashes, "p"), 0)
    assert set(gone) == {1, 2, 3} | {block + ten for block in range(5) for ten in (10, 20, 30, 40)}
    assert len(turns.looks) == 1
    mirrors.note(range(500, 505), "p", (), 0)
    assert len(turns.looks) == 1


def test_what_was_computed_while_it_was_taken_for_gone_is_there_again() -> None:
    index = PrefixIndex(1 << 20, 60, lambda: 0.0)
    ours, other = (1, 2, 3), (7, 8, 9)
    for hashes in (ours, other):
        index.add(hashes, "p")
        index.confirm(hashes, "p", index.recall(hashes, "p"), 0)
    # Both are sent again, and the answer that comes first says that much has been forgotten.
    recalled = [index.recall(hashes, "p") for hashes in (ours, other)]
    index.add(ours, "p")
    index.add(other, "p")
    assert index.confirm(other, "p", recalled[1], 0) == 3
    assert index.match(ours) == {}
    assert index.confirm(ours, "p", recalled[0], 0) == 0
    assert index.match(ours) == {"p": 3}


def test_an_answer_that_is_late_makes_nothing_known_again() -> None:
    """What was recalled before others' answers says less than these."""
    mirrors = CacheMirrors(100)
    for first in (10, 20, 30, 40):
        mirrors.note([first, first + 1], "p", (), 0)
    early, late = mirrors.recall([10, 11], "p"), mirrors.recall([30, 31], "p")
    assert set(mirrors.note([30, 31], "p", late, 0)) == {10, 11, 20, 21}
    mirrors.note([10, 11], "p", early, 0)
    assert mirrors._mirrors["p"].horizon == 3


def test_where_there_is_no_room_the_end_of_a_prompt_goes_first() -> None:
    mirrors = CacheMirrors(80)
    mirrors.note(range(80), "p", (), 0)
    mirrors.note([100], "p", (), 0)
    left = mirrors.recall(range(80), "p")
    assert 60 < len(left) < 80
