"""What a request is charged when its turn comes, until it is known what it has used."""

from collections.abc import Callable

from pdrouter.bounded import make_room
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.serving.gate import has_reached_engine
from pdrouter.serving.record import Outcome, RequestRecord

_LEAST_ERROR = 400
MOST_UNSETTLED = 8192
"""Answers of which it may yet be told what they used: the oldest keeps what was expected of it."""


class Turn:
    """The turn of one request.

    Attributes:
        user: whose it is.
        request_id: which request it is.
    """

    __slots__ = (
        "_counters",
        "_input",
        "_line",
        "_on_begin",
        "_output",
        "_settled",
        "request_id",
        "user",
    )

    def __init__(
        self,
        request_id: str,
        user: str,
        counters: VirtualTokens,
        line: str,
        *,
        charged: tuple[float, float],
        on_begin: Callable[[], None],
    ) -> None:
        """Begin with what is charged.

        Args:
            request_id: which request it is.
            user: whose it is.
            counters: where it is charged.
            line: name of its line among them.
            charged: for its prompt, and for the answer that is expected.
            on_begin: called once its work is counted where it is done, or will not be done.
        """
        self.request_id = request_id
        self.user = user
        self._counters = counters
        self._line = line
        self._input, self._output = charged
        self._on_begin: Callable[[], None] | None = on_begin
        self._settled = False

    @property
    def charged(self) -> float:
        """What it is charged in all."""
        return self._input + self._output

    def begin(self) -> None:
        """Note that its work is counted where it is done. Further calls change nothing."""
        on_begin, self._on_begin = self._on_begin, None
        if on_begin is not None:
            on_begin()

    def give_up(self) -> None:
        """Charge nothing: no engine has got anything. Further calls change nothing."""
        self.begin()
        self._settle(0.0, 0.0)

    def charge_prompt(self) -> None:
        """Charge the prompt alone: nothing was generated. Further calls change nothing."""
        self.begin()
        self._settle(self._input, 0.0)

    def charge_used(self, prompt: float, output: float) -> None:
        """Charge what was used in place of what was expected. Further calls change nothing."""
        self._settle(prompt, output)

    def _settle(self, prompt: float, output: float) -> None:
        if not self._settled:
            self._settled = True
            self._counters.correct(self._line, self.user, prompt + output - self.charged)


def end_turn(turn: Turn, record: RequestRecord) -> None:
    """Charge a request that has ended no more than it can have used."""
    done = record.outcome is Outcome.OK
    generates = done or (record.forwarded and (record.status or 0) < _LEAST_ERROR)
    if not has_reached_engine(record):
        turn.give_up()
    elif generates:
        turn.begin()
    else:
        turn.charge_prompt()


class UnsettledTurns:
    """Turns by request, of which it may yet be told what they have used."""

    __slots__ = ("_most", "_turns")

    def __init__(self, most: int = MOST_UNSETTLED) -> None:
        """Begin with none.

        Args:
            most: how many are kept.
        """
        self._most = most
        self._turns: dict[str, Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, turn: Turn) -> None:
        """Keep a turn."""
        make_room(self._turns, turn.request_id, self._most)
        self._turns[turn.request_id] = turn

    def take(self, request_id: str) -> Turn | None:
        """Return the turn of a request, and keep it no more; None if there is none."""
        return self._turns.pop(request_id, None)
