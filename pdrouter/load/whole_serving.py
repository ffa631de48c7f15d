"""What is learnt of decode pods that compute prompts themselves, and of the way over two pods."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, inf

from pdrouter.bounded import make_room

HORIZON_S = 10.0
"""About how far back counts what a pod has computed of late; its time between tokens likewise."""
ENOUGH_ANSWERS = 20
"""Answers from which on it is known what the way over two pods takes."""

_USUAL_HANDOVER_S = 0.05
_TRIAL_S = 10.0
"""Time from one request to the next on a pod of which it is not known how fast it is."""
_KNOWN_S = 300.0
"""How long what was measured of a pod holds; twice as long each time it was slow again."""
_LONGEST_KNOWN_S = 3600.0
_SLOW = 2.0
_UNKNOWN_FACTOR = 4.0
_FORGET = 0.9
_PRIOR_S = 0.1
"""Seconds as predicted that count with what was measured: short prompts say little of a pod."""
_GREATEST_SURPRISE = 4.0
"""How many times longer than predicted something may take, for what is learnt from it."""
_REFUSED_S = 600.0
_STRIKES = 3
"""Answers of 4xx in a row after which it is the pod that cannot serve whole requests."""
_LEAST_FAILURE = 500
_LATEST_WEIGHT = 0.05
_MOST_MODELS = 4096
_LOOK_S = 2.0
"""Time between two answers whose first token is waited for, once enough is known; twice as long
each time that it came as expected, since Envoy sends all of such an answer by way of the router."""
_LONGEST_LOOK_S = 32.0
_EXPECTED = 1.5
"""How many times as long as expected something may take, or as short, that is no surprise."""
_NOISE_S = 0.01


@dataclass(slots=True)
class _Looks:
    """When an answer's first token is waited for, once enough is known.

    Attributes:
        last: when it was last decided.
        pause_s: time until the next.
    """

    last: float = -inf
    pause_s: float = _LOOK_S

    def begin(self, now: float, *, known: bool) -> bool:
        """Return whether to wait for one now."""
        if known and now - self.last < self.pause_s:
            return False
        self.last = now
        return True

    def note(self, seconds: float, expected: float) -> None:
        """Take what was found, and what was known before."""
        least, most = expected / _EXPECTED - _NOISE_S, expected * _EXPECTED + _NOISE_S
        if least <= seconds <= most:
            self.pause_s = min(2 * self.pause_s, _LONGEST_LOOK_S)
        else:
            self.pause_s = _LOOK_S


@dataclass(slots=True)
class _Known:
    """What is known of one pod.

    Attributes:
        observed: seconds that prompts have taken; fades with each further one.
        predicted: seconds that a prefill pod would have taken for them.
        measured: when a prompt was measured last.
        patience: seconds for which that holds.
        looks: when one is measured.
        sent: when a request was sent there last.
        busy_until: until when it computes what was sent, as predicted.
        spent: predicted seconds of computing of late; fades with time.
        strikes: refusals in a row.
        refused_until: until when it counts as a pod that serves no request whole.
    """

    observed: float = 0.0
    predicted: float = 0.0
    measured: float = -inf
    patience: float = _KNOWN_S
    looks: _Looks = field(default_factory=_Looks)
    sent: float = -inf
    busy_until: float = -inf
    spent: float = 0.0
    strikes: int = 0
    refused_until: float = -inf

    @property
    def factor(self) -> float:
        return (self.observed + _PRIOR_S) / (self.predicted + _PRIOR_S)


@dataclass(slots=True)
class _Handover:
    """What the way over two pods has taken beside computing.

    Attributes:
        seconds: a mean in which recent answers weigh more.
        answers: how many have been measured.
        looks: when one is measured.
    """

    seconds: float = 0.0
    answers: int = 0
    looks: _Looks = field(default_factory=_Looks)


_NOTHING = _Known()


class WholeServing:
    """Remembers how decode pods do with whole requests, by UID. One for the whole process."""

    def __init__(
        self, handover_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing known.

        Args:
            handover_s: seconds from the end of prefill to the first token; None to measure them.
            clock: gives the time in seconds.
        """
        self._handover_s = handover_s
        self._clock = clock
        self._pods: dict[str, _Known] = {}
        self._handovers: dict[str, _Handover] = {}

    def find_handover(self, model: str) -> float | None:
        """Return the seconds from the end of prefill to the first token; None until measured."""
        if self._handover_s is not None:
            return self._handover_s
        known = self._handovers.get(model)
        return None if known is None or known.answers < ENOUGH_ANSWERS else known.seconds

    def expect_handover(self, model: str) -> float:
        """Return the seconds from the end of prefill to the first token, measured or not."""
        known = self.find_handover(model)
        return _USUAL_HANDOVER_S if known is None else known

    def count_answers(self, model: str) -> int:
        """Return how many answers of two pods have been measured."""
        known = self._handovers.get(model)
        return 0 if known is None else known.answers

    def observe_handover(self, model: str, seconds: float) -> None:
        """Learn from an answer whose first token came so long after it was handed over."""
        known = self._find_handover(model)
        if known.answers >= ENOUGH_ANSWERS:
            known.looks.note(seconds, known.seconds)
        if known.answers:
            seconds = min(seconds, _GREATEST_SURPRISE * known.seconds + _PRIOR_S)
        known.answers += 1
        known.seconds += (seconds - known.seconds) * max(1 / known.answers, _LATEST_WEIGHT)

    def find_factor(self, uid: str) -> float:
        """Return how many times as long as on the fastest prefill pod prompts take on a pod.

        One of which that is not known counts as a slow one: short prompts are enough to find out.
        """
        known = self._pods.get(uid, _NOTHING)
        return known.factor if self._is_known(known) else _UNKNOWN_FACTOR

    def predict_wait(self, uid: str) -> float:
        """Return the seconds until a pod has computed the prompts that were sent there whole."""
        return max(0.0, self._pods.get(uid, _NOTHING).busy_until - self._clock())

    def measure_share(self, uid: str) -> float:
        """Return which share of its time, of late, a pod has computed prompts sent there whole."""
        known = self._pods.get(uid, _NOTHING)
        return known.spent * exp((known.sent - self._clock()) / HORIZON_S) / HORIZON_S

    def may_serve(self, uid: str) -> bool:
        """Return whether a pod may get a whole request that could be split.

        One of which it is not known how fast it is gets one now and then.
        """
        known = self._pods.get(uid, _NOTHING)
        now = self._clock()
        if now < known.refused_until:
            return False
        return self._is_known(known) or now - known.sent >= _TRIAL_S

    def begin(self, uid: str, seconds: float) -> None:
        """Note that a pod gets a request whole whose prompt takes it so long, as predicted."""
        known, now = self._pods.setdefault(uid, _Known()), self._clock()
        known.spent = known.spent * exp((known.sent - now) / HORIZON_S) + seconds
        known.busy_until = max(now, known.busy_until) + seconds
        known.sent = now

    def observe(self, uid: str, predicted: float, seconds: float) -> None:
        """Learn from a prompt that a pod has computed.

        Args:
            uid: the pod.
            predicted: seconds that the fastest prefill pod would have taken.
            seconds: how long it took.
        """
        known, now = self._pods.get(uid), self._clock()
        if known is None:
            return  # Gone meanwhile.
        anew = not self._is_known(known)
        if anew:
            known.observed = known.predicted = 0.0
            known.looks.pause_s = _LOOK_S
        else:
            known.looks.note(seconds, known.factor * predicted)
        longest = _GREATEST_SURPRISE * known.factor * predicted + _PRIOR_S
        known.observed = known.observed * _FORGET + min(seconds, longest)
        known.predicted = known.predicted * _FORGET + predicted
        known.measured = now
        if known.factor < _SLOW:
            known.patience = _KNOWN_S
        elif anew:
            known.patience = min(2 * known.patience, _LONGEST_KNOWN_S)

    def note_answer(self, uid: str, status: int) -> None:
        """Take the status with which a pod has answered a whole request that could be split.

        An engine that has nothing to compute prompts with refuses them; so do others what is wrong
        with a request.
        """
        known = self._pods.get(uid)
        if known is None:
            return
        known.strikes = 0 if status < 400 else known.strikes + 1
        if status >= _LEAST_FAILURE or known.strikes >= _STRIKES:
            known.refused_until = self._clock() + _REFUSED_S
            known.strikes = 0

    def is_refused(self, uid: str) -> bool:
        """Return whether a pod has refused whole requests of late."""
        return self._clock() < self._pods.get(uid, _NOTHING).refused_until

    def wants_handover(self, model: str) -> bool:
        """Return whether the first token of an answer of two pods is to be waited for."""
        if self._handover_s is not None:
            return False
        known = self._find_handover(model)
        return known.looks.begin(self._clock(), known=known.answers >= ENOUGH_ANSWERS)

    def wants_whole(self, uid: str) -> bool:
        """Return whether that of a whole answer is."""
        known = self._pods.get(uid)
        return known is not None and known.looks.begin(self._clock(), known=self._is_known(known))

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone, or in which another engine runs."""
        self._pods.pop(uid, None)

    def describe(self, uid: str) -> dict[str, float | bool]:
        """Return what is known of a pod, for people; nothing if it has served no such request."""
        known = self._pods.get(uid)
        if known is None:
            return {}
        described: dict[str, float | bool] = {"refused": self.is_refused(uid)}
        if self._is_known(known):
            described["factor"] = round(known.factor, 3)
        return described

    def _is_known(self, known: _Known) -> bool:
        return self._clock() - known.measured < known.patience

    def _find_handover(self, model: str) -> _Handover:
        known = self._handovers.get(model)
        if known is None:
            make_room(self._handovers, model, _MOST_MODELS)
            known = self._handovers[model] = _Handover()
        return known
