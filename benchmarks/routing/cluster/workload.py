"""The requests that a simulated cluster serves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from pdrouter.openai.prompt_prefix import PromptPrefix

BLOCK_TOKENS = 512
"""Tokens in a block of a prompt: those of the Mooncake traces, whose ids stand for such blocks."""


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request.

    Attributes:
        arrival_s: when it arrives, in seconds since the start.
        prompt: its blocks; sizes are tokens.
        output_tokens: tokens that it generates, at least one.
        answer_hashes: blocks that its answer fills up, as far as a later prompt tells.
    """

    arrival_s: float
    prompt: PromptPrefix
    output_tokens: int
    answer_hashes: tuple[int, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.prompt.size


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrival.

    Attributes:
        name: name, for people.
        requests: the requests.
        shares_prefixes: whether it says anything of what prompts have in common.
    """

    name: str
    requests: tuple[SimulatedRequest, ...]
    shares_prefixes: bool = True

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.requests) / self.duration_s

    @property
    def mean_output_tokens(self) -> int:
        """Mean length of the answers, as an operator might configure it."""
        return round(sum(request.output_tokens for request in self.requests) / len(self.requests))

    def scale(self, factor: float) -> "Workload":
        """Return the same requests at so many times the rate.

        Time is compressed and nothing is dropped: dropping would destroy what prompts share.
        """
        return replace(
            self,
            requests=tuple(
                replace(request, arrival_s=request.arrival_s / factor) for request in self.requests
            ),
        )

    def cut(self, start: float, end: float) -> "Workload":
        """Return a part, by shares of the number of requests; its time begins at zero."""
        total = len(self.requests)
        kept = self.requests[round(total * start) : round(total * end)]
        first = kept[0].arrival_s
        return replace(
            self,
            requests=tuple(
                replace(request, arrival_s=request.arrival_s - first) for request in kept
            ),
        )


def link_turns(requests: Sequence[SimulatedRequest]) -> tuple[SimulatedRequest, ...]:
    """Return the requests with the blocks that their answers fill up.

    Traces say what is in prompts, not in answers; but the next prompt of a conversation has both.
    A prompt is taken for the next one if it begins with all whole blocks of another, no third ends
    where that one does (they would have a system prompt in common, or a document), and it is long
    enough for the answer too.
    """
    linked = list(requests)
    # Who has a prompt whose last whole block is this one: an index, or None for several.
    enders: dict[int, int | None] = {}
    for index, request in enumerate(requests):
        hashes = request.prompt.hashes
        known = next((at for at in range(len(hashes) - 1, 0, -1) if hashes[at - 1] in enders), 0)
        former = enders[hashes[known - 1]] if known else None
        if former is not None:
            answered = requests[former].prompt_tokens + requests[former].output_tokens
            if answered <= request.prompt_tokens:
                answer = hashes[known : answered // BLOCK_TOKENS]
                linked[former] = replace(linked[former], answer_hashes=answer)
        if hashes:
            enders[hashes[-1]] = None if hashes[-1] in enders else index
    return tuple(linked)


def make_prompt(hashes: Sequence[int], tokens: int) -> PromptPrefix:
    """Return the prompt of so many tokens whose blocks have these ids.

    Only whole blocks count: engines cache nothing smaller.
    """
    whole = min(len(hashes), tokens // BLOCK_TOKENS)
    return PromptPrefix(tuple(hashes[:whole]), _list_ends(whole), tokens)


@cache
def _list_ends(blocks: int) -> tuple[int, ...]:
    return tuple(range(BLOCK_TOKENS, BLOCK_TOKENS * blocks + 1, BLOCK_TOKENS))
