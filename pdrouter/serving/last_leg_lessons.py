"""What the last leg of a request teaches: how long its pod took, and what it has cached by now."""

import time

from pdrouter.routing.state import RoutingState
from pdrouter.routing.whole_lessons import (
    learn_first_token,
    learn_prompt,
    learn_status,
    note_sent,
    wants_first_token,
)
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import Outcome, RequestRecord

_OK = Outcome.OK


class LastLegLessons:
    """Learns from one request, from the moment at which it is sent to its last pod.

    It looks no further into an answer than to its first byte: engines send the head of a streamed
    answer before they have computed anything.
    """

    __slots__ = ("_chosen", "_record", "_sent", "_state", "_waits")

    def __init__(
        self,
        chosen: OpenDecision,
        state: RoutingState,
        record: RequestRecord,
    ) -> None:
        """Begin: the request is sent now.

        Args:
            chosen: its pods, as they stand at any time.
            state: learns.
            record: what is known of the request.
        """
        self._chosen = chosen
        self._state = state
        self._record = record
        self._sent = time.perf_counter()
        self._waits = False
        if chosen.decision.reason:
            note_sent(chosen.decision, state)

    def note_status(self, status: int) -> None:
        """Take the status with which the engine has answered."""
        reason = self._record.aggregated
        if reason:
            learn_status(self._chosen.decision, reason, self._state, status)

    def wait_for_first_token(self) -> bool:
        """Return whether the body of the answer is to be seen, since it would teach something."""
        record, chosen = self._record, self._chosen
        if record.stream:
            self._waits = wants_first_token(
                chosen.decision, record.aggregated, chosen.routed.pods.model, self._state
            )
        return self._waits

    def see(self, piece: bytes) -> None:
        """Look at the next piece of the body."""
        if self._waits and piece:
            self._waits = False
            seconds, chosen = time.perf_counter() - self._sent, self._chosen
            reason, model = self._record.aggregated, chosen.routed.pods.model
            learn_first_token(chosen.decision, reason, model, self._state, seconds)

    def close(self) -> None:
        """Learn from how the request has ended."""
        record, chosen = self._record, self._chosen
        if record.outcome is _OK:
            facts, model = chosen.routed.facts, chosen.routed.pods.model
            learn_prompt(chosen.decision, facts, self._state, record.output_tokens, model)
