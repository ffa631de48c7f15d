"""The prompts that a decode engine computes along with its steps of generation."""

from benchmarks.routing.cluster.decode_batch import DecodeTask
from benchmarks.routing.cluster.speeds import PrefillSpeed


class PromptChunks:
    """Prompts that are computed in order, as much of them in a step as its tokens allow.

    Tokens of those who generate come first, as in vLLM. What a chunk costs is added to the step
    that takes it along: the weights are read once, but no other part of the two is taken to happen
    at the same time. An engine that takes whole prompts only computes one in a step of its own.

    Attributes:
        computed_tokens: tokens computed so far.
    """

    __slots__ = ("_planned", "_prompts", "_speed", "computed_tokens")

    def __init__(self, speed: PrefillSpeed) -> None:
        self._speed = speed
        self._prompts: dict[DecodeTask, None] = {}
        self._planned: list[tuple[DecodeTask, int]] = []
        self.computed_tokens = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, task: DecodeTask) -> None:
        """Take a request whose prompt is to be computed."""
        self._prompts[task] = None

    def plan(self, generating: int) -> float:
        """Choose what the next step computes; return the seconds that this adds to it.

        Args:
            generating: requests that get a token in the same step.
        """
        speed = self._speed
        room = speed.tokens_per_step
        if room is None:
            task = next(iter(self._prompts))
            self._planned = [(task, task.to_compute)]
            return speed.run(task.computed, task.to_compute)
        left, seconds = max(1, room - generating), 0.0
        for task in self._prompts:
            tokens = speed.limit(task.to_compute, left)
            self._planned.append((task, tokens))
            seconds += speed.compute(task.computed, tokens)
            left -= tokens
            if not left:
                break
        return seconds

    def finish(self) -> list[DecodeTask]:
        """End the step; return the requests whose prompts are computed now."""
        computed = []
        for task, tokens in self._planned:
            task.computed += tokens
            self.computed_tokens += tokens
            if not task.to_compute:
                del self._prompts[task]
                computed.append(task)
        self._planned = []
        return computed
