"""The settings of who asks, and how much they may."""

from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.choices import OnFailure, UserSource
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import BOOLEAN, PATH, enumeration


@dataclass(frozen=True)
class UserSettings:
    """Settings of users."""

    keys_file: Path | None = declare(
        None,
        "PDROUTER_API_KEYS_FILE",
        PATH,
        "File with users, digests of their API keys, their models and their limits (users.md); "
        "followed when it changes. Unset: nobody has a key of one's own.",
    )
    users: UserSource | None = declare(
        None,
        "PDROUTER_USERS",
        enumeration(UserSource, *UserSource),
        "How users are known: `keys`, by their API keys alone; `header`, also by the `user` "
        "header, which is trusted: only where Envoy sets it, or nobody lies; `aibrix`, also by "
        "that header, which names one of aibrix's users in Redis. Unset: `aibrix` where "
        "`REDIS_HOST` is set, as by aibrix's manifests, and no PDROUTER_API_KEYS_FILE; else "
        "`keys`.",
    )
    limits_on_failure: OnFailure = declare(
        OnFailure.OPEN,
        "PDROUTER_LIMITS_ON_FAILURE",
        enumeration(OnFailure, *OnFailure),
        "What becomes of requests whose limits cannot be checked, since Redis is away: `open`, "
        "they pass uncounted; `closed`, they get 503.",
    )
    forward_keys: bool = declare(
        False,
        "PDROUTER_FORWARD_API_KEYS",
        BOOLEAN,
        "Whether engines get the keys of PDROUTER_API_KEYS_FILE that clients present. Other keys "
        "go on to engines in any case.",
    )
    engine_key_file: Path | None = declare(
        None,
        "PDROUTER_ENGINE_API_KEY_FILE",
        PATH,
        "File with the key that engines want (vLLM's `--api-key`): they get it in place of the "
        "client's. Unset: they get the client's own, unless that is a user's.",
    )
