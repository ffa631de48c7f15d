"""The nearest known name to what somebody wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.nearest import find_nearest

NAMES = ("ROUTING_ALGORITHM", "PDROUTER_MAX_WAIT", "PDROUTER_DRAIN", "prefill", "decode")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("ROUTING_ALGORITM", "ROUTING_ALGORITHM"),
        ("AIBRIX_ROUTING_ALGORITHM", "ROUTING_ALGORITHM"),
        ("PDROUTER_MAXWAIT", "PDROUTER_MAX_WAIT"),
        ("pdrouter-drain", "PDROUTER_DRAIN"),
        ("prefil", "prefill"),
        ("Prefill", "prefill"),
        ("decoed", "decode"),
        ("AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS", None),
        ("HOME", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found(word: str, name: str | None) -> None:
    assert find_nearest(word, NAMES) == name


@given(st.lists(st.text(), min_size=1, unique=True), st.data())
def test_a_known_name_is_its_own_nearest(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))

    assert find_nearest(name, names) == name


def test_nothing_is_like_a_word_where_nothing_is_known() -> None:
    assert find_nearest("prefill", ()) is None
