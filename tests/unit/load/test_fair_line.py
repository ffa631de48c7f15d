"""Lines in which users take turns by what they have been served."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pdrouter.load.fair_line import FairLine, Place
from pdrouter.load.virtual_tokens import VirtualTokens

WAYS = ("prefill",)
DEAREST = 100


def make_place(user: str, tokens: float = 1, way: str = "prefill", item: int = 0) -> Place[int]:
    return Place(user, way, tokens, 0.0, item)


def join(line: FairLine[int], user: str, *tokens: float) -> None:
    for each in tokens:
        line.join(make_place(user, each))


def serve(line: FairLine[int], turns: int = 1) -> str:
    """Give so many requests their turn; return whose they were."""
    served = ""
    for _ in range(turns):
        place = line.find_first(WAYS)
        assert place is not None
        line.serve(place)
        served += place.user
    return served


def test_a_user_who_comes_after_a_flood_has_the_next_turn() -> None:
    line = FairLine[int](VirtualTokens())
    join(line, "a", *[10] * 50)
    assert serve(line, 3) == "aaa"
    join(line, "b", 10)
    assert serve(line, 3) == "baa"
    join(line, "b", 10, 10)
    assert serve(line, 4) == "baba"


def test_tokens_count_and_not_requests() -> None:
    line = FairLine[int](VirtualTokens())
    join(line, "a", *[30] * 4)
    join(line, "b", *[10] * 12)
    assert Counter(serve(line, 16)) == {"a": 4, "b": 12}
    join(line, "a", *[30] * 4)
    join(line, "b", *[10] * 12)
    assert Counter(serve(line, 8)) == {"a": 2, "b": 6}


def test_requests_of_one_user_keep_their_order() -> None:
    line = FairLine[int](VirtualTokens())
    for item in range(5):
        line.join(make_place("a", 5 - item, item=item))
    items = []
    while (place := line.find_first(WAYS)) is not None:
        line.serve(place)
        items.append(place.item)
    assert items == [0, 1, 2, 3, 4]


def test_who_was_away_has_saved_nothing_up() -> None:
    line = FairLine[int](VirtualTokens())
    join(line, "b", 1)
    assert serve(line) == "b"
    join(line, "a", *[10] * 30)
    serve(line, 20)
    join(line, "b", *[10] * 10)
    assert Counter(serve(line, 10)) == {"a": 5, "b": 5}


def test_who_was_alone_has_lost_nothing() -> None:
    line = FairLine[int](VirtualTokens())
    for _ in range(1000):
        line.pass_by("a", 10)
    join(line, "a", *[10] * 10)
    join(line, "b", *[10] * 10)
    assert Counter(serve(line, 10)) == {"a": 5, "b": 5}


def test_one_who_asks_for_one_thing_at_a_time_pays_for_what_it_costs() -> None:
    """Coming back must not wipe out what the last request cost."""
    line = FairLine[int](VirtualTokens())
    join(line, "a", *[10] * 100)
    served = ""
    for _ in range(22):
        if "b" not in line.users:
            join(line, "b", 100)
        served += serve(line)
    assert Counter(served) == {"a": 20, "b": 2}


def test_what_was_not_used_is_given_back() -> None:
    line = FairLine[int](VirtualTokens())
    join(line, "a", *[10] * 10)
    join(line, "b", *[100] * 10)
    serve(line, 2)
    line._counters.correct("", "b", -90)
    assert Counter(serve(line, 2)) == {"a": 1, "b": 1}


def test_what_has_no_room_keeps_nothing_else_waiting() -> None:
    line = FairLine[int](VirtualTokens())
    line.join(make_place("a", way="prefill"))
    line.join(make_place("b", way="decode"))
    first = line.find_first({"decode"})
    assert first is not None
    assert first.user == "b"
    assert line.find_first(()) is None
    assert line.ways == {"prefill", "decode"}


def test_who_leaves_is_charged_nothing_and_is_gone() -> None:
    line = FairLine[int](VirtualTokens())
    places = [make_place("a", 50), make_place("a", 50), make_place("b", 50)]
    for place in places:
        line.join(place)
    line.leave(places[0])
    line.leave(places[0])
    assert len(line) == 2
    assert line.find_first(WAYS) is places[1]
    assert line.read("a") == 0
    line.leave(places[1])
    line.leave(places[2])
    assert not line.users
    assert line.find_first(WAYS) is None


def test_the_newest_of_a_user_is_found_whichever_way_it_goes() -> None:
    line = FairLine[int](VirtualTokens())
    for item, way in enumerate(("prefill", "decode", "prefill")):
        line.join(make_place("a", way=way, item=item))
    line.join(make_place("b", item=3))
    newest = line.find_newest("a")
    assert newest is not None
    assert newest.item == 2
    assert line.find_newest("c") is None
    assert line.users == {"a": 3, "b": 1}


def test_the_counters_are_of_so_many_users_and_the_newest_stay() -> None:
    tokens = VirtualTokens(most=3)
    for user in "abcad":
        tokens.charge("line", user, 10)
    assert len(tokens) == 3
    assert [tokens.read("line", user) for user in "abcd"] == [20, 0, 10, 10]
    tokens.correct("line", "b", 99)
    assert tokens.read("line", "b") == 0
    assert tokens.read("another", "a") == 0


COSTS = st.integers(1, DEAREST)
ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), COSTS), max_size=30)


@given(before=ARRIVALS, costs=st.lists(st.tuples(COSTS, COSTS), min_size=60, max_size=60))
def test_two_users_who_wait_all_the_time_get_the_same_within_two_requests(
    before: Sequence[tuple[str, int]], costs: Sequence[tuple[int, int]]
) -> None:
    """The bound of the paper (theorem 4.4), where what a request costs is known before."""
    line = FairLine[int](VirtualTokens())
    for user, cost in before:
        line.pass_by(user, cost)
    for cost_a, cost_b in costs:
        join(line, "a", cost_a)
        join(line, "b", cost_b)
    served = dict.fromkeys("ab", 0.0)
    while line.users.keys() == {"a", "b"}:
        place = line.find_first(WAYS)
        assert place is not None
        line.serve(place)
        served[place.user] += place.tokens
        assert abs(served["a"] - served["b"]) <= 2 * DEAREST
        assert abs(line.read("a") - line.read("b")) <= DEAREST


@given(
    costs=st.lists(st.tuples(COSTS, COSTS), min_size=40, max_size=40),
    used=st.lists(COSTS, min_size=100, max_size=100),
    at_once=st.integers(1, 5),
)
def test_what_is_known_late_widens_the_bound_by_what_is_under_way(
    costs: Sequence[tuple[int, int]], used: Sequence[int], at_once: int
) -> None:
    line = FairLine[int](VirtualTokens())
    for expected_a, expected_b in costs:
        join(line, "a", expected_a)
        join(line, "b", expected_b)
    served = dict.fromkeys("ab", 0)
    under_way: list[tuple[Place[int], int]] = []
    for tokens in used:
        if line.users.keys() != {"a", "b"}:
            break
        place = line.find_first(WAYS)
        assert place is not None
        line.serve(place)
        served[place.user] += tokens
        under_way.append((place, tokens))
        if len(under_way) > at_once:
            done, used_tokens = under_way.pop(0)
            line._counters.correct("", done.user, used_tokens - done.tokens)
        assert abs(served["a"] - served["b"]) <= 2 * DEAREST * (1 + at_once)


@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abcd"), COSTS), st.just(("", 0)), st.just(("leave", 0))
        ),
        max_size=200,
    )
)
def test_nobody_waits_for_ever_and_nothing_is_lost(events: Sequence[tuple[str, int]]) -> None:
    line = FairLine[int](VirtualTokens())
    joined, served, left = 0, 0, 0
    for user, cost in events:
        if user == "leave":
            first = line.find_first(WAYS)
            if first is not None:
                line.leave(first)
                left += 1
        elif user:
            join(line, user, cost)
            joined += 1
        elif line.users:
            serve(line)
            served += 1
        assert len(line) == joined - served - left
    # With only so many turns as there are requests in the line, each has had its own.
    for _ in range(len(line)):
        serve(line)
    assert not line.users


@given(others=st.lists(COSTS, min_size=1, max_size=5), debt=COSTS)
def test_who_is_behind_all_others_has_a_turn_once_they_have_caught_up(
    others: Sequence[int], debt: int
) -> None:
    """However many cheap requests the others go on sending."""
    line = FairLine[int](VirtualTokens())
    users = {f"other-{number}": cost for number, cost in enumerate(others)}
    for user, cost in users.items():
        join(line, user, cost)
    join(line, "a", debt)
    while "a" in line.users:
        serve(line)
    join(line, "a", debt)
    turns = 0
    while "a" in line.users:
        for user, cost in users.items():
            if user not in line.users:
                join(line, user, cost)
        serve(line)
        turns += 1
    assert turns <= 1 + sum(1 + (debt + DEAREST) // cost for cost in users.values())
