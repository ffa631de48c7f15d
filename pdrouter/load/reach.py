"""Which pods seem to be out of reach, by whether scrapes can connect to them."""

from dataclasses import dataclass

_LEAST_SCRAPES = 2
"""Scrapes in a row that cannot connect before a pod is suspected."""
_MOST = 4096


@dataclass(slots=True)
class _Reach:
    """What scrapes say of a pod that they could not connect to the last time.

    Attributes:
        failures: scrapes in a row that could not connect.
        refuted: whether a leg has succeeded meanwhile: the metrics are somewhere else.
    """

    failures: int = 0
    refuted: bool = False


class Reaches:
    """Remembers the pods that scrapes could not connect to.

    Attributes:
        pods: those of which that was so the last time, by UID. Do not change it.
    """

    def __init__(self) -> None:
        self.pods: dict[str, _Reach] = {}

    def is_lost(self, uid: str) -> bool:
        """Return whether a pod seems to be out of reach."""
        reach = self.pods.get(uid)
        return reach is not None and reach.failures >= _LEAST_SCRAPES and not reach.refuted

    def note_failure(self, uid: str) -> bool:
        """Note a scrape that could not connect; return whether that is why the pod is lost now."""
        if uid not in self.pods and len(self.pods) >= _MOST:
            return False
        reach = self.pods.setdefault(uid, _Reach())
        reach.failures += 1
        return reach.failures == _LEAST_SCRAPES and not reach.refuted

    def refute(self, uid: str) -> bool:
        """Note that a pod serves, whatever scrapes say; return whether that is news."""
        reach = self.pods.get(uid)
        if reach is None or reach.refuted:
            return False
        reach.refuted = True
        return True

    def forget(self, uid: str) -> bool:
        """Forget a pod that is gone, or was connected to; return whether there was anything."""
        return self.pods.pop(uid, None) is not None
