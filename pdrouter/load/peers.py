"""What wires know of the engines of side legs, until these have started anew."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from pdrouter.cluster.pods import Pod

_MOST = 4096
_LONGEST = 16 * 1024
"""Bytes of what is remembered of one engine; more is none of it."""
_STEP = 4
_MOST_NEEDED = 4096


@dataclass(slots=True)
class _Acquaintance:
    """What is known of one engine.

    Attributes:
        pod: its pod, at the time.
        facts: what it has said last.
        agreed: how often in a row it has said so.
        needed: how often it must, to be believed.
        doubted: when it was doubted last, by the clock.
    """

    pod: Pod
    facts: Mapping[str, bytes]
    agreed: int = 1
    needed: int = 1
    doubted: float = -inf


class PeerKnowledge:
    """Remembers what engines have said of themselves. One for the whole process.

    An engine that contradicts itself is another one than before, or there are several behind one
    address: each time, it takes longer until it is believed again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without any.

        Args:
            clock: gives the time.
        """
        self.clock = clock
        self._known: OrderedDict[str, _Acquaintance] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, pod: Pod) -> Mapping[str, bytes] | None:
        """Return what is known of a pod's engine; None if that is not certain."""
        known = self._known.get(pod.uid)
        if known is None or known.agreed < known.needed or not pod.runs_the_engine_of(known.pod):
            return None
        return known.facts

    def learn(self, pod: Pod, facts: Mapping[str, bytes], asked: float) -> None:
        """Take what a pod's engine has said.

        Args:
            pod: the pod.
            facts: what its engine says of itself.
            asked: when it was asked: what it was asked before it was doubted, another may have
                answered.
        """
        if sum(map(len, facts.values())) > _LONGEST:
            self.doubt(pod.uid)
            return
        known = self._known.get(pod.uid)
        if known is None or not pod.runs_the_engine_of(known.pod):
            self._known[pod.uid] = _Acquaintance(pod, facts)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        elif asked < known.doubted:
            return
        elif known.facts == facts:
            known.agreed = min(known.agreed + 1, known.needed)
        else:
            known.facts, known.agreed = facts, 1
            known.needed = min(known.needed * _STEP, _MOST_NEEDED)

    def doubt(self, uid: str) -> None:
        """Believe a pod's engine no more, until it has said what it is again."""
        known = self._known.get(uid)
        if known is not None:
            known.agreed, known.doubted = 0, self.clock()

    def note_unreachable(self, uid: str) -> None:
        """Doubt a pod's engine that cannot be reached, unless its start would be known."""
        known = self._known.get(uid)
        if known is not None and not known.pod.started:
            self.doubt(uid)

    def forget(self, uid: str) -> None:
        """Forget the engine of a pod that has gone, or in which there is another one."""
        self._known.pop(uid, None)
