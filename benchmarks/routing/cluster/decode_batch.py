"""The running requests of a decode engine, advanced in closed form."""

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from math import sqrt

from benchmarks.routing.cluster.speeds import DecodeSpeed
from benchmarks.routing.cluster.token_gaps import TokenGaps
from benchmarks.routing.cluster.workload import BLOCK_TOKENS, SimulatedRequest

_SAME_STEP = 1e-6


class DecodeTask:
    """One request on a decode engine.

    Attributes:
        request: the request.
        priority: its priority: those of lower values go first, where the engine heeds it.
        on_first_token: called when the first token is there.
        on_finished: called when all are.
        on_received: called when the KV blocks have come from the prefill pod; None for a request
            whose prompt is computed here.
        generated: tokens generated before it last joined the batch.
        answering: whether its first token is there.
        held: blocks of the engine's cache that it holds.
        cached: prompt tokens that were cached when it was admitted.
        computed: tokens that need not be computed any more, of those that it has to begin with.
        place: its place in the line of those who wait.
        preemptions: how often it lost its KV blocks.
    """

    __slots__ = (
        "answering",
        "cached",
        "computed",
        "generated",
        "held",
        "joined",
        "membership",
        "on_finished",
        "on_first_token",
        "on_received",
        "place",
        "preemptions",
        "priority",
        "request",
    )

    def __init__(
        self,
        request: SimulatedRequest,
        on_first_token: Callable[[], None],
        on_finished: Callable[[], None],
        on_received: Callable[[], None] | None,
        priority: float = 0.0,
    ) -> None:
        self.request = request
        self.priority = priority
        self.on_first_token = on_first_token
        self.on_finished = on_finished
        self.on_received = on_received
        self.generated = 0.0
        self.joined = 0.0
        self.membership = 0
        self.answering = False
        self.held: Sequence[int] = ()
        self.cached = 0
        self.computed = 0
        self.place = (0.0, 0)
        self.preemptions = 0

    @property
    def kv_tokens(self) -> float:
        """Tokens that it needs KV memory for when it joins the batch."""
        return self.request.prompt_tokens + self.generated

    @property
    def to_compute(self) -> int:
        """Tokens that have to be computed here before it can go on."""
        return round(self.kv_tokens) - self.computed

    @property
    def whole_blocks(self) -> tuple[int, ...]:
        """The blocks of its prompt, and those of its answer, that have been filled up."""
        answered = int(self.kv_tokens) // BLOCK_TOKENS - len(self.request.prompt.hashes)
        return self.request.prompt.hashes + self.request.answer_hashes[: max(0, answered)]


class DecodeBatch:
    """Requests that get one token each with every step.

    All of them advance together, so one counter of steps says how far each is, and the time of any
    number of steps is a quadratic function: a step grows with the KV memory in use, and that grows
    by one token per request and step. Steps are continuous: a request that joins between two of
    them begins at once.

    Attributes:
        steps: steps since the start.
        kv_tokens: tokens in the KV memory of the batch.
        generated: tokens generated since the start.
        gaps: how long members waited for each of their tokens.
        added_s: seconds that each step takes longer, because prompts are computed with it.
    """

    def __init__(self, speed: DecodeSpeed, slowness: float) -> None:
        self._speed = speed
        self._slowness = slowness
        self._members: dict[DecodeTask, None] = {}
        # Steps at which members have their first or last token, of members and former ones.
        self._milestones: list[tuple[float, int, int, DecodeTask]] = []
        self._order = count()
        self.steps = 0.0
        self.kv_tokens = 0.0
        self.generated = 0.0
        self.gaps = TokenGaps()
        self.added_s = 0.0

    def __len__(self) -> int:
        return len(self._members)

    def join(self, task: DecodeTask) -> None:
        """Add a request whose KV blocks are there."""
        self._members[task] = None
        self.kv_tokens += task.kv_tokens
        task.joined = self.steps
        task.membership += 1
        output_tokens = task.request.output_tokens
        if not task.answering and output_tokens > 1:
            self._add_milestone(task, 1.0)
        self._add_milestone(task, float(output_tokens))

    def leave(self, task: DecodeTask) -> None:
        """Remove a request, finished or not."""
        del self._members[task]
        task.generated += self.steps - task.joined
        task.membership += 1
        self.kv_tokens = self.kv_tokens - task.kv_tokens if self._members else 0.0

    def last(self) -> DecodeTask:
        """Return the member that joined last."""
        return next(reversed(self._members))

    def next_milestone(self) -> float | None:
        """Return the steps until some request has its first or its last token."""
        while self._milestones:
            at, _, membership, task = self._milestones[0]
            if task.membership == membership:
                return max(0.0, at - self.steps)
            heapq.heappop(self._milestones)
        return None

    def take_reached(self) -> list[DecodeTask]:
        """Return the requests that have a first or last token now, in order of joining."""
        reached: list[DecodeTask] = []
        while self._milestones and self._milestones[0][0] <= self.steps + _SAME_STEP:
            _, _, membership, task = heapq.heappop(self._milestones)
            if task.membership == membership:
                reached.append(task)
        return reached

    def count_generated(self, task: DecodeTask) -> float:
        """Return the tokens that a member has generated."""
        return task.generated + self.steps - task.joined

    def seconds(self, steps: float) -> float:
        """Return how long so many steps take."""
        first, growth = self._coefficients()
        return steps * (first + growth * steps / 2.0)

    def advance(self, seconds: float) -> None:
        """Run for so long."""
        first, growth = self._coefficients()
        # The root of seconds(steps), in the form that keeps its precision for small growth.
        steps = 2.0 * seconds / (first + sqrt(first * first + 2.0 * growth * seconds))
        self.advance_steps(steps, seconds)

    def advance_steps(self, steps: float, seconds: float) -> None:
        """Run for so many steps, which take so long."""
        size = len(self._members)
        if size and steps > _SAME_STEP:
            self.gaps.note(seconds / steps, steps * size)
        self.steps += steps
        self.kv_tokens += steps * size
        self.generated += steps * size

    def _coefficients(self) -> tuple[float, float]:
        """Return the seconds of a step now, and by how much each step makes the next longer."""
        speed, size = self._speed, len(self._members)
        first = (
            speed.seconds_per_step
            + speed.seconds_per_request * size
            + speed.seconds_per_kv_token * self.kv_tokens
            + self.added_s
        )
        return first * self._slowness, speed.seconds_per_kv_token * size * self._slowness

    def _add_milestone(self, task: DecodeTask, tokens: float) -> None:
        at = self.steps + tokens - task.generated
        heapq.heappush(self._milestones, (at, next(self._order), task.membership, task))
