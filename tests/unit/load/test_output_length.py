"""The length that is expected of an answer follows those that its model gives."""

from hypothesis import given
from hypothesis import strategies as st

from pdrouter.load.output_length import OutputLengths


def test_nothing_seen_gives_what_the_operator_expects() -> None:
    assert OutputLengths(512).expect("m") == 512


def test_models_are_told_apart_and_their_means_found() -> None:
    lengths = OutputLengths(512)
    for number in range(1_000):
        lengths.observe("short", 30 + number % 3)
        lengths.observe("long", 4_000)
    assert 30 <= lengths.expect("short") <= 32
    assert lengths.expect("long") == 4_000
    assert lengths.expect("other") == 512


def test_one_answer_moves_the_expectation_only_a_little() -> None:
    lengths = OutputLengths(500)
    lengths.observe("m", 1_000)
    assert 500 < lengths.expect("m") < 600


@given(st.integers(1, 10**6), st.lists(st.integers(-(10**12), 10**12), max_size=50))
def test_the_expectation_has_bounds(expected: int, answers: list[int]) -> None:
    lengths = OutputLengths(expected)
    for tokens in answers:
        lengths.observe("m", tokens)
    assert 1 <= lengths.expect("m") <= 10**6
