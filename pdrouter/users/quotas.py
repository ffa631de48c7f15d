"""Which quotas a request draws on, and how much of each."""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from pdrouter.users.counters import SLOTS, Demand, Measure, Quota
from pdrouter.users.roster import ANY_MODEL, Roster
from pdrouter.users.user import Limits, User

MINUTE_S = 60.0
SECOND_S = SLOTS / (SLOTS + 1)
"""With the part of it in which something was taken, a second: who comes again then is let in."""


def list_demands(
    user: User | None,
    roster: Roster,
    model: Sequence[str],
    prompt_tokens: int,
    output_tokens: int,
) -> list[Demand]:
    """Return what a request takes, of its user, of its model, and of both.

    Of tokens it takes those of the prompt, and those that its answer is expected to have; these for
    no more than is left of the limit, since they are a guess. Of what it needs nothing of, it takes
    nothing, unless there is nothing at all.

    Args:
        user: who asks; None for nobody in particular.
        roster: knows the limits of models.
        model: names of the model by which limits may know it, the widest first; the last is unique
            to it.
        prompt_tokens: length of the prompt.
        output_tokens: length of the answer, as expected.
    """
    demands = (
        Demand(each, _count(each, prompt_tokens, output_tokens))
        for each in _list_quotas(user, roster, model)
    )
    return [demand for demand in demands if demand.amount or not demand.quota.limit]


def limit_rate(unique: str, model: str, per_second: int) -> Demand:
    """Return what a request takes of the rate that its model's profile allows.

    Args:
        unique: name of the model that no other has.
        model: name of the model, for people.
        per_second: how many requests may pass in a second.
    """
    name = f"model/{quote(unique, safe='')}/rate/{per_second}"
    quota = Quota(name, Measure.REQUESTS, per_second, SECOND_S, f"model {model!r}", shared=True)
    return Demand(quota)


def _count(quota: Quota, prompt_tokens: int, output_tokens: int) -> int:
    if quota.measure is not Measure.TOKENS:
        return 1
    return min(prompt_tokens + output_tokens, max(prompt_tokens, quota.limit))


def _list_quotas(user: User | None, roster: Roster, model: Sequence[str]) -> Iterator[Quota]:
    if user is not None:
        whose, scope = f"user/{quote(user.name, safe='')}", f"user {user.name!r}"
        yield from _limit(whose, scope, user.limits)
        found = _find(user.model_limits, model)
        if found is not None:
            name, limits = found
            both = f"{whose}/model/{quote(name, safe='')}"
            yield from _limit(both, f"{scope} and model {model[0]!r}", limits)
    found = _find(roster.model_limits, model)
    if found is not None:
        name, limits = found
        whose = f"model/{quote(name, safe='')}"
        yield from _limit(whose, f"model {model[0]!r}", limits, shared=True)


def _find(limits: Mapping[str, Limits], model: Sequence[str]) -> tuple[str, Limits] | None:
    """Return the limits of a model, and the name under which it counts.

    The narrowest limits hold, whatever name it is asked for by.
    """
    if not limits:
        return None
    for name in reversed(model):
        if name in limits:
            return name, limits[name]
    return (model[-1], limits[ANY_MODEL]) if ANY_MODEL in limits else None


def _limit(whose: str, scope: str, limits: Limits, *, shared: bool = False) -> Iterator[Quota]:
    for measure, limit, window_s in (
        (Measure.REQUESTS, limits.requests_per_minute, MINUTE_S),
        (Measure.TOKENS, limits.tokens_per_minute, MINUTE_S),
        (Measure.CONCURRENT, limits.concurrent_requests, 0.0),
    ):
        if limit is not None:
            yield Quota(f"{whose}/{measure}", measure, limit, window_s, scope, shared)
