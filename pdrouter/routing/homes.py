"""Which pods a router goes to first, where there are several routers: each has its own.

What a router has sent, the others see late and in part: left to themselves, all of them send to the
pod that looks idle, and each fills the caches of all pods. So they part the pods, without talking:
each works out the same parts from the names of the routers and of the pods.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b

from pdrouter.bounded import make_room
from pdrouter.cluster.router_group import RouterGroup

_MOST_KEPT = 64
"""Sets of pods whose parts are kept: one for each model."""
_MOST_WEIGHTS = 16_384
"""Pairs of a pod and a router whose weights are kept: pods come and go, most pairs stay."""


class Homes:
    """Knows the home pods of this router."""

    __slots__ = ("_found", "_group", "_members")

    def __init__(self, group: RouterGroup | None = None) -> None:
        """Set up for a group of routers; None for one router, which is at home everywhere."""
        self._group = group or RouterGroup()
        self._members = self._group.members
        self._found: dict[tuple[str, ...], frozenset[str]] = {}

    def find(self, uids: tuple[str, ...]) -> frozenset[str]:
        """Return which pods are home; none where that makes no difference between them.

        Args:
            uids: all pods of a model, not only those to which some request may go: what clients
                say does not change the parts, nor have them worked out anew.
        """
        members = self._group.members
        if len(members) == 1:
            return frozenset()
        if members is not self._members:
            self._members = members
            self._found.clear()
        found = self._found.get(uids)
        if found is None:
            found = find_homes(self._group.own, members, uids)
            if len(found) == len(uids):
                found = frozenset()
            make_room(self._found, uids, _MOST_KEPT)
            self._found[uids] = found
        return found


def find_homes(own: str, routers: Collection[str], uids: Collection[str]) -> frozenset[str]:
    """Return the home pods of a router.

    Where there are as many pods as routers or more, each pod is home to one router, and routers
    have equally many, but for one. Where there are fewer, each router has one, and pods are home to
    equally many.

    Args:
        own: the router.
        routers: all routers.
        uids: all pods.
    """
    if len(uids) >= len(routers):
        parts = part_evenly(uids, routers)
        return frozenset(uid for uid, router in parts.items() if router == own)
    parts = part_evenly(routers, uids)
    return frozenset((parts[own],))


def part_evenly(many: Iterable[str], few: Collection[str]) -> Mapping[str, str]:
    """Part things evenly among fewer owners, the same way whoever does it.

    Each pair has a weight that follows from both names (rendezvous hashing), and the heaviest pairs
    are formed first, up to an even share of each owner: so most stay where they were when an owner
    or a thing comes or goes.
    """
    things = sorted(many)
    share, left = divmod(len(things), len(few))
    room = dict.fromkeys(few, share)
    owners: dict[str, str] = {}
    pairs = sorted((_weigh(thing, owner), thing, owner) for thing in things for owner in few)
    for _, thing, owner in pairs:
        if thing in owners:
            continue
        if room[owner] > 0:
            room[owner] -= 1
        elif room[owner] == 0 and left:
            # Some owners have one more than others.
            left -= 1
            room[owner] = -1
        else:
            continue
        owners[thing] = owner
    return owners


@lru_cache(_MOST_WEIGHTS)
def _weigh(one: str, other: str) -> bytes:
    """Return a weight of two names, whichever of them comes first."""
    names = "\n".join(sorted((one, other)))
    return blake2b(names.encode(), digest_size=8).digest()
