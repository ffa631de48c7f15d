"""The settings of who asks, and how much they may."""

from dataclasses import dataclass

from pdrouter.settings.choices import UserSource
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import enumeration


@dataclass(frozen=True)
class UserSettings:
    """Settings of users."""

    users: UserSource = declare(
        UserSource.KEYS,
        "PDROUTER_USERS",
        enumeration(UserSource, *UserSource),
        "How users are known: `keys`, by their API keys alone; `header`, also by the `user` "
        "header, which is trusted: only where Envoy sets it, or nobody lies.",
    )
