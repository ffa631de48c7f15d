"""A decision while its pods may still change: nothing is committed before Envoy has the request."""

from collections.abc import Sequence

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.routing.algorithms.preble import note_prompt
from pdrouter.routing.scoring import PROMPT_READERS, WINDOW_READERS
from pdrouter.routing.state import RoutingState
from pdrouter.serving.choosing import Routed
from pdrouter.serving.record import Outcome, RequestRecord

_SERVED = (None, Outcome.OK, Outcome.CLIENT_LEFT)
"""How requests end that an engine has probably computed the prompt of; None: it is not known."""


class OpenDecision:
    """The pods of one request. The last one counts it, whichever that is, until this is closed.

    Attributes:
        routed: the pods, and what they were chosen by.
        decision: the choices, as they stand now.
        pods: their pods, by leg.
    """

    __slots__ = ("_expected", "_record", "_scope", "_state", "decision", "pods", "routed")

    def __init__(self, routed: Routed, state: RoutingState, record: RequestRecord) -> None:
        """Count the request on its last pod.

        Args:
            routed: the pods that were chosen first.
            state: where it is counted.
            record: gets each new decision.
        """
        self.routed = routed
        self.decision = routed.decision
        self.pods = routed.decision.pods
        self._state = state
        self._record = record
        last = routed.decision.last
        self._scope = state.hold(last.leg, last.pod.uid, last.tokens)
        self._expected = self._expect(routed)

    def change(self, routed: Routed) -> None:
        """Let other pods serve the request; what has been counted moves with it."""
        before, last = self.decision.last, routed.decision.last
        self.routed = routed
        self.decision = self._record.decision = routed.decision
        self.pods = routed.decision.pods
        if last.pod.uid != before.pod.uid:
            self._scope.release()
            self._forget_prompt(before.pod)
            self._scope = self._state.hold(last.leg, last.pod.uid, last.tokens)
            self._expected = self._expect(routed)

    def move_last(self, pod: Pod) -> None:
        """Count the request on the second pod: Envoy has come there, and not to the chosen one."""
        self._record.unreached = self.decision.last.pod
        self.change(structs.replace(self.routed, decision=self.decision.move_last(pod)))

    def close(self) -> None:
        """Count the request no more. Further calls change nothing."""
        self._scope.release()
        if self._record.outcome not in _SERVED:
            self._forget_prompt(self.decision.last.pod)

    def _forget_prompt(self, pod: Pod) -> None:
        if self._expected:
            self._state.decoded.discard(self._expected, pod.uid)
            self._expected = ()

    def _expect(self, routed: Routed) -> Sequence[int]:
        """Note which pods get the prompt, if that counts.

        Returns:
            What the last of them has not had of it, and will have.
        """
        facts, decision, state = routed.facts, routed.decision, self._state
        if PROMPT_READERS.isdisjoint(facts.algorithms):
            return ()
        if not WINDOW_READERS.isdisjoint(facts.algorithms):
            note_prompt(facts, decision, state)
        last = decision.last.pod.uid
        return state.decoded.expect(facts.prefix.hashes, last, facts.prompt_tokens)
