"""Who asks, and what counts what they ask for: made of the settings."""

import os
import platform
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdrouter.serving.identities import Identities
from pdrouter.settings import Settings
from pdrouter.settings.choices import OnFailure, UserSource
from pdrouter.users.cached_directory import CachedDirectory
from pdrouter.users.counters import Counters
from pdrouter.users.directory import Directory
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.local_counters import LocalCounters
from pdrouter.users.places import Places
from pdrouter.users.window_counts import WindowCounts
from pdrouter.wiring.sharing import Sharing

if TYPE_CHECKING:
    from pdrouter.users.redis.shared import SharedState


def create_keys_file(settings: Settings, on_reload: Callable[[bool], object]) -> KeysFile:
    """Return the users of the file that is set; nothing is read yet.

    Args:
        settings: what the operator decided.
        on_reload: called after each attempt to read a changed file, with its success.
    """
    return KeysFile(settings.keys_file, on_reload)


def create_shared_state(settings: Settings) -> "SharedState | None":
    """Return what is shared with other routers; None without Redis."""
    url = settings.redis
    if url is None:
        return None
    # Loaded when needed: its client costs 0.1 s and 13 MB.
    from pdrouter.users.redis.shared import SharedState  # noqa: PLC0415

    return SharedState(url, settings)


def find_directory(settings: Settings, shared: "SharedState | None") -> Directory | None:
    """Return where users are looked up whom a trusted header names; None for nowhere."""
    if shared is None or settings.user_source is not UserSource.AIBRIX:
        return None
    return CachedDirectory(shared.directory)


def create_local_counters(settings: Settings, sharing: Sharing) -> Counters:
    """Return what counts against limits where there is no Redis.

    Args:
        settings: what the operator decided.
        sharing: how what is counted becomes that of all workers.
    """
    windows, places = sharing.share(WindowCounts)(sharing.clock), sharing.share(Places)()
    # All workers have the same parent: what one of them has given, any of them can put right.
    group = f"{platform.node()}/{os.getppid()}" if settings.workers > 1 else ""
    return LocalCounters(sharing.clock, windows=windows, places=places, group=group)


def create_identities(
    settings: Settings, keys: KeysFile, directory: Directory | None, failures: Counter[str]
) -> Identities | None:
    """Return what finds out who asks; None where that makes no difference.

    Args:
        settings: what the operator decided.
        keys: users by their keys.
        directory: users by the names of a trusted header; None where they are not kept elsewhere.
        failures: counts users who could not be found.
    """
    trusts_header = settings.user_source is not UserSource.KEYS
    if not (keys.given or settings.bearer_token is not None or trusts_header):
        return None
    return Identities(
        keys,
        settings.bearer_token,
        trusts_header=trusts_header,
        directory=directory,
        admits_unknown=settings.limits_on_failure is OnFailure.OPEN,
        failures=failures,
    )
