"""What was written when: the versions that lists and watches may start from."""

from bisect import bisect_right
from collections import defaultdict

from .failures import ApiError
from .kinds import Kind
from .objects import Change, Key, Stored

_FIRST_VERSION = 100


class History:
    """All writes of one server, with a single counter as etcd's revision is one.

    Attributes:
        resource_version: of the last write.
        compacted: the state before this version is gone; its lists and watches are 410.
        watch_floor: watches from an older version are 410, though lists may still be served.
    """

    def __init__(self) -> None:
        self.resource_version = _FIRST_VERSION
        self.compacted = 0
        self.watch_floor = 0
        self._changes: defaultdict[Kind, list[Change]] = defaultdict(list)

    def next_version(self) -> int:
        """Count one more write."""
        self.resource_version += 1
        return self.resource_version

    def record(self, change: Change) -> None:
        """Add the newest write."""
        self._changes[change.stored.kind].append(change)

    def compact(self) -> None:
        """Forget all writes up to now."""
        self._changes.clear()
        self.compacted = self.watch_floor = self.resource_version

    def cool_watch_cache(self) -> None:
        """Let watches begin at the current version, as after a restart of the API server."""
        self.watch_floor = self.resource_version

    def since(self, kind: Kind, version: int) -> list[Change]:
        """The writes after a version that is not below `watch_floor`, oldest first."""
        changes = self._changes[kind]
        return changes[bisect_right(changes, version, key=lambda change: change.resource_version) :]

    def state_at(self, kind: Kind, version: int, present: dict[Key, Stored]) -> dict[Key, Stored]:
        """What was stored after an earlier write, given what is stored now.

        Raises:
            ApiError: 410 if that state was compacted away.
        """
        if version < self.compacted:
            raise ApiError.expired_watch(version, self.compacted)
        state = dict(present)
        for change in reversed(self._changes[kind]):
            if change.resource_version <= version:
                break
            if change.previous is None:
                del state[change.stored.key]
            else:
                state[change.stored.key] = change.previous
        return state

    def roll_back(self, version: int) -> None:
        """Forget all writes after a version, and count on from it."""
        for changes in self._changes.values():
            while changes and changes[-1].resource_version > version:
                changes.pop()
        self.resource_version = version
        self.watch_floor = version
