"""What the HTTP port shows of users: never of their keys."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec import structs

from pdrouter.serving.record import RequestRecord
from pdrouter.users.roster import Roster
from pdrouter.users.user import User


def describe_users(roster: Roster, requests: Iterable[RequestRecord]) -> dict[str, Any]:
    """Return the users of the file, with what they have open.

    Args:
        roster: the users.
        requests: the requests that have not ended.
    """
    keys = Counter(user.name for user in roster.by_digest.values())
    opened = Counter(record.user for record in requests if record.user)
    named = [_describe(user, keys[user.name], opened[user.name]) for user in roster.users.values()]
    others = sum(count for name, count in opened.items() if name not in roster.users)
    return {
        "named": named,
        "others": {"open_requests": others},
        "default_limits": structs.asdict(roster.default_limits),
        "model_limits": {
            model: structs.asdict(limits) for model, limits in roster.model_limits.items()
        },
    }


def _describe(user: User, keys: int, open_requests: int) -> dict[str, Any]:
    return {
        "name": user.name,
        "keys": keys,
        "open_requests": open_requests,
        "models": user.models,
        "limits": structs.asdict(user.limits),
        "model_limits": {
            model: structs.asdict(limits) for model, limits in user.model_limits.items()
        },
    }
