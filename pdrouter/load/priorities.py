"""Which engines take first what has the lowest priority, as far as that is known."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pdrouter.cluster.pods import Pod

_REMEMBERED_S = 600.0
"""An engine may start anew, with other flags, where nobody tells of it."""
_MOST = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of one engine.

    Attributes:
        pod: its pod, at the time.
        takes: whether it takes priorities.
        until: when that is forgotten, by the clock.
    """

    pod: Pod
    takes: bool
    until: float


class PriorityKnowledge:
    """Remembers which engines have taken a priority, and which have refused one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without any.

        Args:
            clock: gives the time.
        """
        self.clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, pod: Pod) -> bool | None:
        """Return whether a pod's engine takes priorities; None if that is not known."""
        known = self._known.get(pod.uid)
        if known is None or self.clock() >= known.until:
            return None
        return known.takes if pod.runs_the_engine_of(known.pod) else None

    def note(self, pod: Pod, *, takes: bool) -> None:
        """Take what a pod's engine has done with a priority."""
        self._known[pod.uid] = _Known(pod, takes, self.clock() + _REMEMBERED_S)
        self._known.move_to_end(pod.uid)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def note_unreachable(self, uid: str) -> None:
        """Forget a pod's engine that cannot be reached, unless its start would be known."""
        known = self._known.get(uid)
        if known is not None and not known.pod.started:
            self.forget(uid)

    def forget(self, uid: str) -> None:
        """Forget the engine of a pod that has gone, or in which there is another one."""
        self._known.pop(uid, None)
