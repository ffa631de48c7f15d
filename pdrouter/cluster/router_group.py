"""The routers that send to the same pods: the replicas, each with all its workers."""

import re
from collections.abc import Collection
from socket import gethostname

from pdrouter.settings import SettingInvalid, Settings

_ORDINAL = re.compile("-([0-9]+)$")
"""At the end of the name of a StatefulSet's pod."""


class RouterGroup:
    """Who else routes, as far as it is known. The workers of a replica are one router.

    Attributes:
        own: name of this router.
        members: the names of all of them, its own among them.
    """

    __slots__ = ("_is_known", "members", "own")

    def __init__(self, own: str = "", *, replicas: Collection[str] = ()) -> None:
        """Set up the group.

        Args:
            own: name of this replica.
            replicas: the names of all replicas, as far as they are known.
        """
        self._is_known = False
        self.own = own
        self.members: frozenset[str] = frozenset()
        self.take_replicas(replicas)

    def take_replicas(self, names: Collection[str], starting: Collection[str] = ()) -> None:
        """Take which replicas there are. What changes nothing leaves `members` the same object.

        This one is among them, though it may not be ready yet. While its name has been none of
        these, others know it by another one, and it goes on alone rather than as one too many.

        Args:
            names: those that are ready.
            starting: those that are not.
        """
        self._is_known = self._is_known or self.own in (*names, *starting)
        members = frozenset((self.own, *names) if self._is_known else (self.own,))
        if members != self.members:
            self.members = members


def form_group(settings: Settings) -> RouterGroup:
    """Return the routers that there are, as far as the settings say it.

    Args:
        settings: what the operator decided.

    Raises:
        SettingInvalid: they say how many replicas there are, and not which this one is.
    """
    replicas, index = settings.replicas, settings.replica
    # A pod of the host's network, or one that says so, has another host name than its own.
    host = settings.own_name or gethostname()
    if replicas == 1:
        return RouterGroup(host)
    ordinal = _ORDINAL.search(host)
    if index is None and ordinal is not None:
        index = int(ordinal[1])
    if index is None or index >= replicas:
        raise SettingInvalid(
            f"PDROUTER_REPLICAS={replicas}: PDROUTER_REPLICA must say which of them this is, from "
            f"0 to {replicas - 1}; only the name of a StatefulSet's pod says it otherwise"
        )
    names = [str(number) for number in range(replicas)]
    return RouterGroup(names[index], replicas=names)
