"""Requests wait for their turn while their model's pods have enough to do, users one by one."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Protocol

from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.fair_line import FairLine, Place
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.openai.errors import RequestRejected
from pdrouter.routing.admission import DeadlineMissed, QueueTooLong
from pdrouter.routing.decision import NoReadyPod
from pdrouter.routing.router import Router
from pdrouter.routing.saturation import (
    DEFAULT_SATURATION,
    OnTheWay,
    SaturationRules,
    find_open_legs,
)
from pdrouter.serving.charges import Charge, Charges
from pdrouter.serving.model_queue import Applicant, ModelQueue, Waiting, Way
from pdrouter.serving.refusals import DEADLINE_MISSED, refuse_for_now
from pdrouter.serving.steps import Step
from pdrouter.serving.turns import Turn
from pdrouter.serving.worker_turns import WorkerTurns

STEP = "queue"
"""The step in which a request waits for its turn."""

_LOOK_S = 0.05
"""Seconds between two looks at the pods while requests wait: what is predicted changes with time,
and what others send there with every look at their metrics."""
_MOST_MODELS = 1024
_BOTH = frozenset({Leg.PREFILL, Leg.DECODE})


class QueueObserver(Protocol):
    """Is told of turns. Must not raise."""

    def turn_came(self, model: str, line: str, seconds: float) -> None:
        """A request that had to wait has its turn, after so many seconds."""

    def turn_refused(self, model: str, line: str, reason: str) -> None:
        """A request waits no more, and has not had its turn: `full`, `timeout` or `deadline`."""


@dataclass(frozen=True, slots=True)
class FairnessRules:
    """What an operator decides about turns.

    Attributes:
        saturation: how much work pods have when requests begin to wait.
        longest_s: seconds that a request may wait.
        most: requests of one model that may wait.
        classes: seconds until the first token of each class: each has a line of its own.
        default_target_s: those of requests without a class.
    """

    saturation: SaturationRules = DEFAULT_SATURATION
    longest_s: float = 30.0
    most: int = 1000
    classes: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    default_target_s: float = 1.0


class FairQueues:
    """Gives requests their turns. One for the whole process.

    As long as pods have room, a request passes as it comes. While they have none, or others wait,
    it waits: a turn goes to the user who was served least, in the class that is due first. Nothing
    waits while there is room for it.
    """

    def __init__(
        self,
        router: Router,
        cache: PodCache,
        observer: QueueObserver,
        rules: FairnessRules,
        *,
        counters: VirtualTokens,
        charges: Charges,
        workers: WorkerTurns | None = None,
    ) -> None:
        """Begin with nobody waiting.

        Args:
            router: knows the pods' condition, and where requests would go.
            cache: the pods.
            observer: is told of turns.
            rules: what the operator decided.
            counters: count what users are served.
            charges: keep what requests are charged until it is known what they have used.
            workers: know who waits at other workers; None for the only one.
        """
        self._workers = workers
        self._charges = charges
        self._counters = counters
        self._router = router
        self._cache = cache
        self._observer = observer
        self._rules = rules
        self._queues: dict[str, ModelQueue] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False

    def count_waiting(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield of each line the model, the class, and the requests and users that wait."""
        for key, queue in list(self._queues.items()):
            _, model = key.split("/", 1)
            for name, line in list(queue.lines.items()):
                yield model, name, len(line), len(line.users)

    async def wait(self, applicant: Applicant) -> Turn:
        """Return when it is a request's turn.

        Raises:
            RequestRejected: its turn does not come in time, or too many wait.
        """
        self._router.state.catch_up()
        facts, queue = applicant.facts, self._find_queue(applicant.pods)
        line = queue.find_line(applicant.line)
        tokens = self._charges.weights.weigh(facts.prompt_tokens, facts.output_tokens)
        open_legs = self._find_open(applicant.name, queue)
        passes = open_legs == _BOTH and not len(queue) and not self._others_wait(applicant.name)
        leg = None if passes else self._find_leg(applicant)
        if leg is None:
            line.pass_by(facts.user, tokens)
            return self._give_turn(applicant, queue)
        self._make_room(queue, applicant)
        place = self._make_place(applicant, leg, tokens)
        line.join(place)
        if leg in open_legs:
            self._look()
        else:
            self._watch()
        granted = place.item.granted
        return granted.result() if granted.done() else await self._wait(place, line)

    def _others_wait(self, name: str) -> bool:
        """Return whether requests for a model wait at other workers."""
        workers = self._workers
        return workers is not None and any(workers.are_waiting(Way(name, leg)) for leg in _BOTH)

    def _find_queue(self, pods: ModelPods) -> ModelQueue:
        # Adapters wait with their model: they need the same pods.
        pod = pods.pods[0]
        key = f"{pod.namespace}/{pod.model}"
        queue = self._queues.get(key)
        if queue is None:
            if len(self._queues) >= _MOST_MODELS:
                self._queues = {key: each for key, each in self._queues.items() if len(each)}
            queue = self._queues[key] = ModelQueue(key, self._counters)
        return queue

    def _make_place(self, applicant: Applicant, leg: Leg, tokens: float) -> Place[Waiting]:
        rules = self._rules
        target_s = rules.classes.get(applicant.line, rules.default_target_s)
        waiting = Waiting(applicant, asyncio.get_running_loop().create_future())
        due = applicant.record.began + target_s
        return Place(applicant.facts.user, Way(applicant.name, leg), tokens, due, waiting)

    def _find_open(self, name: str, queue: ModelQueue) -> frozenset[Leg]:
        pods = self._cache.view.models.get(name)
        if pods is None:
            return _BOTH
        on_the_way = OnTheWay(queue.on_the_way, queue.prompt_tokens)
        return find_open_legs(pods, self._router.state, self._rules.saturation, on_the_way)

    def _find_leg(self, applicant: Applicant) -> Leg | None:
        """Return what a request begins with, and needs room for; None if it would be refused.

        Then it need not wait: the router refuses it, and says why.
        """
        try:
            decision = self._router.decide(applicant.strategy, applicant.facts, applicant.pods)
        except (NoReadyPod, QueueTooLong, DeadlineMissed):
            return None
        return Leg.DECODE if decision.prefill is None else Leg.PREFILL

    def _make_room(self, queue: ModelQueue, applicant: Applicant) -> None:
        """Let the user who has most in a full queue have one less.

        Raises:
            RequestRejected: that is the one who asks.
        """
        if len(queue) < self._rules.most:
            return
        counts = queue.count_by_user()
        greatest, most = counts.most_common(1)[0]
        place = None if counts[applicant.facts.user] >= most else queue.find_newest(greatest)
        if place is None:
            raise self._refuse(applicant, "full")
        queue.find_line(place.item.applicant.line).leave(place)
        if not place.item.granted.done():
            place.item.granted.set_exception(self._refuse(place.item.applicant, "full"))

    async def _wait(self, place: Place[Waiting], line: FairLine[Waiting]) -> Turn:
        applicant, granted = place.item
        limit_s, reason = self._find_limit(applicant)
        steps = applicant.record.steps
        try:
            with Step(steps, STEP, waits=True):
                async with asyncio.timeout(limit_s):
                    turn = await granted
        except TimeoutError:
            _give_up(granted)
            raise self._refuse(applicant, reason) from None
        except asyncio.CancelledError:
            _give_up(granted)
            raise
        finally:
            line.leave(place)
        self._observer.turn_came(applicant.record.model, applicant.line, steps.seconds[STEP])
        return turn

    def _find_limit(self, applicant: Applicant) -> tuple[float, str]:
        """Return how many seconds a request may wait, and what it misses then."""
        deadline, longest_s = applicant.facts.deadline, self._rules.longest_s
        if deadline is not None and deadline.binding and self._router.rules.refuses_late:
            left_s = deadline.due - self._router.state.clock()
            if left_s < longest_s:
                return max(0.0, left_s), "deadline"
        return longest_s, "timeout"

    def _refuse(self, applicant: Applicant, reason: str) -> RequestRejected:
        record, deadline = applicant.record, applicant.facts.deadline
        self._observer.turn_refused(record.model, applicant.line, reason)
        if reason == "deadline" and deadline is not None:
            message = str(DeadlineMissed(0.0, deadline, "its turn has not come by then"))
            return refuse_for_now(429, DEADLINE_MISSED, message)
        if reason == "timeout":
            message = f"its turn has not come within {self._rules.longest_s:g} s"
        else:
            message = f"{self._rules.most} requests of the model wait, and most of them are yours"
        return refuse_for_now(429, "overloaded", message)

    def _give_turn(self, applicant: Applicant, queue: ModelQueue) -> Turn:
        tokens = applicant.facts.prompt_tokens
        queue.on_the_way += 1
        queue.prompt_tokens += tokens

        def begin() -> None:
            queue.on_the_way -= 1
            queue.prompt_tokens -= tokens

        line = queue.find_line(applicant.line).name
        correct = partial(self._counters.correct, line, applicant.facts.user)
        charge = Charge(applicant.facts, self._charges.weights, correct)
        self._charges.keep(applicant.record.request_id, charge)
        return Turn(begin)

    def _look(self) -> None:
        """Give those their turn that there is room for, one of each model.

        The next ones come when these have begun, and count where they are.
        """
        self._router.state.catch_up()
        given = False
        for queue in self._queues.values():
            given = (bool(len(queue)) and self._serve_next(queue)) or given
            if self._workers is not None:
                self._workers.tell(queue)
        self._watch()
        if given:
            self._look_soon()

    def _watch(self) -> None:
        """Look again when a leg has ended, and soon in any case, for as long as requests wait."""
        waits = any(map(len, self._queues.values()))
        self._router.state.ledger.on_end = self._look_soon if waits else None
        if waits and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look_in_time)

    def _look_in_time(self) -> None:
        self._timer = None
        self._look()

    def _look_soon(self) -> None:
        """Look once those have begun that have their turn by now."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self._soon = False
        self._look()

    def _serve_next(self, queue: ModelQueue) -> bool:
        """Give the next request of a queue its turn, if there is room for one."""
        names = {way.name for way in queue.ways}
        open_ways = [Way(name, leg) for name in names for leg in self._find_open(name, queue)]
        found = queue.find_next(open_ways)
        if found is None:
            return False
        place, line = found
        applicant = place.item.applicant
        if self._workers is not None:
            pods = applicant.pods
            if not self._workers.goes_first(found, len(pods.prefill or pods.whole)):
                return False
        line.serve(place)
        place.item.granted.set_result(self._give_turn(applicant, queue))
        return True


def _give_up(granted: "asyncio.Future[Turn]") -> None:
    """Take back a turn that came too late: its request has just ended."""
    if granted.done() and not granted.cancelled() and granted.exception() is None:
        granted.result().begin()
