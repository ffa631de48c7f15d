"""Which limits a request has to keep to, and what it takes of them."""

import msgspec

from pdrouter.users.counters import Demand, Measure, Quota, Taken
from pdrouter.users.quotas import SECOND_S, limit_rate, list_demands
from pdrouter.users.roster import EMPTY, Roster
from pdrouter.users.user import Limits, User

MODEL = ("m", "ns/m")


def test_a_request_draws_on_its_user_its_model_and_both() -> None:
    user = User("a b", limits=Limits(1, 2000, 3), model_limits={"m": Limits(4)})
    roster = Roster(model_limits={"m": Limits(concurrent_requests=5)})
    demands = list_demands(user, roster, MODEL, 100, 50)
    assert demands == [
        Demand(Quota("user/a%20b/requests", Measure.REQUESTS, 1, 60.0, "user 'a b'")),
        Demand(Quota("user/a%20b/tokens", Measure.TOKENS, 2000, 60.0, "user 'a b'"), 150),
        Demand(Quota("user/a%20b/concurrent", Measure.CONCURRENT, 3, 0.0, "user 'a b'")),
        Demand(
            Quota(
                "user/a%20b/model/m/requests",
                Measure.REQUESTS,
                4,
                60.0,
                "user 'a b' and model 'm'",
            )
        ),
        Demand(Quota("model/m/concurrent", Measure.CONCURRENT, 5, 0.0, "model 'm'", shared=True)),
    ]


def test_names_of_users_and_models_cannot_be_taken_for_others() -> None:
    tricky = User("ann/model/m", limits=Limits(1))
    plain = User("ann", model_limits={"m": Limits(1)})
    [first], [second] = (list_demands(user, EMPTY, MODEL, 1, 1) for user in (tricky, plain))
    assert first.quota.name != second.quota.name


def test_nobody_in_particular_has_the_limits_of_models_alone() -> None:
    assert list_demands(None, EMPTY, MODEL, 1, 1) == []
    roster = Roster(default_limits=Limits(1), model_limits={"*": Limits(9)})
    [demand] = list_demands(None, roster, MODEL, 1, 1)
    assert demand.quota.name == "model/ns%2Fm/requests"


def test_limits_of_a_model_hold_by_whatever_name_it_is_asked_for() -> None:
    roster = Roster(model_limits={"m": Limits(9), "*": Limits(1)})
    names = [
        list_demands(None, roster, asked, 1, 1)[0].quota
        for asked in (("m", "ns/m"), ("ns/m", "m", "ns/m"))
    ]
    assert [(quota.name, quota.limit) for quota in names] == [("model/m/requests", 9)] * 2


def test_a_guess_at_the_answer_alone_keeps_no_request_out() -> None:
    user = User("ann", limits=Limits(tokens_per_minute=100))
    taken = [
        list_demands(user, EMPTY, MODEL, prompt, 512)[0].amount for prompt in (10, 99, 100, 101)
    ]
    # A prompt that is too long by itself is; the rest may have all that there is.
    assert taken == [100, 100, 100, 101]


def test_a_models_rate_is_one_of_its_namespace_and_number() -> None:
    demand = limit_rate("ns/m", "m", 7)
    assert demand.quota == Quota(
        "model/ns%2Fm/rate/7", Measure.REQUESTS, 7, SECOND_S, "model 'm'", shared=True
    )
    assert limit_rate("other/m", "m", 7).quota.name != demand.quota.name


def test_what_was_taken_can_be_written_down() -> None:
    user = User("ann", limits=Limits(5, 100, 5))
    taken = Taken(tuple(list_demands(user, EMPTY, MODEL, 10, 20)), "r1", 12.5, "here")
    [demand] = taken.demands[1:2]
    selected = taken.select_tokens()
    assert selected is not None
    read = msgspec.json.decode(msgspec.json.encode(selected), type=Taken)
    assert (read.holder, read.at, read.counters) == ("r1", 12.5, "here")
    assert [(each.quota.name, each.amount) for each in read.demands] == [
        (demand.quota.name, demand.amount)
    ]
    assert Taken((), "r1", 1.0).select_tokens() is None
