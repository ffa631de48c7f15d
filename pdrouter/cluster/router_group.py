"""The routers that send to the same pods: replicas, and the workers of each."""

import re
from collections.abc import Collection
from socket import gethostname

from pdrouter.settings import SettingInvalid, Settings

_ORDINAL = re.compile("-([0-9]+)$")
"""At the end of the name of a StatefulSet's pod."""


class RouterGroup:
    """Who else routes, as far as it is known. Workers know as little of each other as replicas do.

    Attributes:
        own: name of this router.
        members: the names of all of them, its own among them.
    """

    __slots__ = ("_is_known", "_replica", "_workers", "members", "own")

    def __init__(
        self,
        replica: str = "",
        *,
        worker: int = 0,
        workers: int = 1,
        replicas: Collection[str] = (),
    ) -> None:
        """Set up the group.

        Args:
            replica: name of this replica.
            worker: which of its workers this router is, from 0 on.
            workers: how many each replica has.
            replicas: the names of all replicas, as far as they are known.
        """
        self._replica = replica
        self._workers = workers
        self._is_known = False
        self.own = _name(replica, worker)
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
        self._is_known = self._is_known or self._replica in (*names, *starting)
        replicas = {self._replica, *names} if self._is_known else {self._replica}
        members = frozenset(
            _name(replica, worker) for replica in replicas for worker in range(self._workers)
        )
        if members != self.members:
            self.members = members


def form_group(settings: Settings, worker: int) -> RouterGroup:
    """Return the routers that there are, as far as the settings say it.

    Args:
        settings: what the operator decided.
        worker: which of the workers this router is.

    Raises:
        SettingInvalid: they say how many replicas there are, and not which this one is.
    """
    replicas, index = settings.replicas, settings.replica
    # A pod of the host's network, or one that says so, has another host name than its own.
    host = settings.own_name or gethostname()
    if replicas == 1:
        return RouterGroup(host, worker=worker, workers=settings.workers)
    ordinal = _ORDINAL.search(host)
    if index is None and ordinal is not None:
        index = int(ordinal[1])
    if index is None or index >= replicas:
        raise SettingInvalid(
            f"PDROUTER_REPLICAS={replicas}: PDROUTER_REPLICA must say which of them this is, from "
            f"0 to {replicas - 1}; only the name of a StatefulSet's pod says it otherwise"
        )
    names = [str(number) for number in range(replicas)]
    return RouterGroup(names[index], worker=worker, workers=settings.workers, replicas=names)


def _name(replica: str, worker: int) -> str:
    return f"{replica}/{worker}"
