"""The running requests of a decode engine, advanced in closed form."""

import heapq
from collections.abc import Callable
from itertools import count
from math import sqrt

from benchmarks.routing.cluster.speeds import DecodeSpeed

_SAME_STEP = 1e-6


class DecodeTask:
    """One request on a decode engine.

    Attributes:
        prompt_tokens: length of the prompt.
        output_tokens: tokens to generate.
        generated: tokens generated before it last joined the batch.
        answering: whether its first token is there.
        preemptions: how often it lost its KV blocks.
    """

    __slots__ = (
        "answering",
        "generated",
        "joined",
        "membership",
        "on_finished",
        "on_first_token",
        "on_received",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
    )

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        on_first_token: Callable[[], None],
        on_finished: Callable[[], None],
        on_received: Callable[[], None] | None,
    ) -> None:
        """Describe a request.

        Args:
            prompt_tokens: length of the prompt.
            output_tokens: tokens to generate.
            on_first_token: called when the first token is there.
            on_finished: called when all are.
            on_received: called when the KV blocks have come from the prefill pod; None for a
                request whose prompt is computed here.
        """
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.on_first_token = on_first_token
        self.on_finished = on_finished
        self.on_received = on_received
        self.generated = 0.0
        self.joined = 0.0
        self.membership = 0
        self.answering = False
        self.preemptions = 0

    @property
    def kv_tokens(self) -> float:
        """Tokens that it needs KV memory for when it joins the batch."""
        return self.prompt_tokens + self.generated


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

    def __len__(self) -> int:
        return len(self._members)

    def join(self, task: DecodeTask) -> None:
        """Add a request whose KV blocks are there."""
        self._members[task] = None
        self.kv_tokens += task.kv_tokens
        task.joined = self.steps
        task.membership += 1
        if not task.answering and task.output_tokens > 1:
            self._add_milestone(task, 1.0)
        self._add_milestone(task, float(task.output_tokens))

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
        self.advance_steps(2.0 * seconds / (first + sqrt(first * first + 2.0 * growth * seconds)))

    def advance_steps(self, steps: float) -> None:
        """Run for so many steps."""
        size = len(self._members)
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
        )
        return first * self._slowness, speed.seconds_per_kv_token * size * self._slowness

    def _add_milestone(self, task: DecodeTask, tokens: float) -> None:
        at = self.steps + tokens - task.generated
        heapq.heappush(self._milestones, (at, next(self._order), task.membership, task))
