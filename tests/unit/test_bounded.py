"""Dictionaries that do not grow without end."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pdrouter.bounded import make_room


@given(st.lists(st.integers(0, 9)), st.integers(1, 6))
def test_the_newest_entries_are_kept(keys: Sequence[int], most: int) -> None:
    kept: dict[int, int] = {}
    for place, key in enumerate(keys):
        known, before = key in kept, list(kept)
        make_room(kept, key, most)
        kept[key] = place
        assert list(kept) == (before if known else [*before, key][-most:])
        assert len(kept) <= most
