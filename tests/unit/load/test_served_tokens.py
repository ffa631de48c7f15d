"""What users were served within a window that moves on."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pdrouter.load.served_tokens import SLOTS, ServedTokens, Shares

WINDOW_S = 300.0
PART_S = WINDOW_S / SLOTS


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nobody_was_served_anything() -> None:
    assert ServedTokens().look("a") == Shares(0.0, None, None)


def test_a_user_is_seen_beside_the_one_with_the_fewest_and_the_one_with_the_most() -> None:
    served = ServedTokens()
    for user, tokens in (("a", 100), ("b", 20), ("c", 7), ("a", 50)):
        served.count(user, tokens)
    assert served.look("a") == Shares(150, 7, 150)
    assert served.look("b") == Shares(20, 7, 150)
    assert served.look("d") == Shares(0, 7, 150)


def test_what_is_older_than_the_window_counts_no_more_even_of_users_nobody_asks_for() -> None:
    clock = Time()
    served = ServedTokens(WINDOW_S, clock)
    served.count("gone", 5)
    served.count("a", 100)
    clock.now += WINDOW_S / 2
    served.count("a", 10)
    assert served.look("a") == Shares(110, 5, 110)
    clock.now += WINDOW_S / 2 + PART_S
    assert served.look("a") == Shares(10, 10, 10)
    assert len(served) == 1
    clock.now += WINDOW_S
    assert served.look("a") == Shares(0, None, None)
    assert len(served) == 0


def test_what_was_not_used_is_taken_back() -> None:
    served = ServedTokens()
    served.count("a", 100)
    served.count("a", -60)
    assert served.look("a") == Shares(40, 40, 40)
    served.count("a", -60)
    assert served.look("a") == Shares(0, None, None)


def test_of_too_many_users_the_one_goes_who_was_served_nothing_for_longest() -> None:
    served = ServedTokens(most=2)
    for user, tokens in (("a", 1), ("b", 2), ("a", 1), ("c", 4)):
        served.count(user, tokens)
    assert [served.look(user).own for user in "abc"] == [2, 0, 4]
    assert served.look("a") == Shares(2, 2, 4)


@given(
    events=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(-20, 50), st.sampled_from([0.0, 1.0, 7.0])),
        max_size=120,
    )
)
def test_it_is_the_sum_of_what_the_window_holds(events: Sequence[tuple[str, int, float]]) -> None:
    clock, window_s = Time(), 60.0
    served = ServedTokens(window_s, clock)
    part_s = window_s / SLOTS
    seen: list[tuple[int, str, int]] = []
    for user, tokens, later in events:
        clock.now += later
        part = int(clock.now / part_s)
        served.count(user, tokens)
        seen.append((part, user, tokens))
        totals = dict.fromkeys("abcd", 0)
        for at, who, number in seen:
            if at > part - SLOTS:
                totals[who] += number
        positive = [total for total in totals.values() if total > 0]
        shares = served.look(user)
        assert shares.own == max(0, totals[user])
        assert shares.least == min(positive, default=None)
        assert shares.most == max(positive, default=None)
