"""How fast simulated engines and the links between them are."""

from dataclasses import dataclass
from math import ceil

from pdrouter.load.static_shapes import StaticShapes


@dataclass(frozen=True, slots=True)
class PrefillSpeed:
    """What computing prompts costs.

    Attributes:
        seconds_per_token: time of the layers that see each token by itself.
        seconds_per_token_squared: time of attention, which looks from each token at all before it,
            cached ones too.
        seconds_per_step: time that each step of the engine takes in any case.
        tokens_per_step: tokens that one step computes at the most, of one prompt or several, as
            with chunked prefill in vLLM; None for an engine that takes one whole prompt per step
            (Neuron with `--max-num-seqs 1`).
        longest_chunk: tokens of one prompt that a step computes at the most, so that others get a
            part of it too, as with `--long-prefill-token-threshold` in vLLM; None for no limit.
        buckets: prompt lengths that an engine of static shapes is compiled for, ascending: it
            computes a shorter one as if it had the next of these lengths. Empty for others.
    """

    seconds_per_token: float
    seconds_per_token_squared: float
    seconds_per_step: float
    tokens_per_step: int | None
    longest_chunk: int | None = None
    buckets: tuple[int, ...] = ()

    def compute(self, done: int, tokens: int) -> float:
        """Return the seconds for so many tokens of a prompt of which others are done already."""
        padded = StaticShapes(self.buckets).pad(tokens)
        pairs = padded * (2 * done + padded)
        return padded * self.seconds_per_token + pairs * self.seconds_per_token_squared

    def limit(self, tokens: int, room: int | None) -> int:
        """Return how many of so many tokens of a prompt a step computes that has so much room."""
        if room is not None:
            tokens = min(tokens, room)
        return tokens if self.longest_chunk is None else min(tokens, self.longest_chunk)

    def run(self, done: int, tokens: int) -> float:
        """Return the seconds for them with all steps that they take, on an engine of their own."""
        steps = 1 if self.tokens_per_step is None else ceil(tokens / self.tokens_per_step)
        return self.compute(done, tokens) + steps * self.seconds_per_step


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """What a step of generation costs, which gives each running request one token.

    Attributes:
        seconds_per_step: time to read the weights.
        seconds_per_request: time that each running request adds.
        seconds_per_kv_token: time to read each token in KV memory.
        slots: requests that may run at once.
    """

    seconds_per_step: float
    seconds_per_request: float
    seconds_per_kv_token: float
    slots: int


@dataclass(frozen=True, slots=True)
class Link:
    """How KV blocks get from a prefill pod to a decode pod.

    Attributes:
        latency_s: seconds from the end of prefill until the decode engine begins to fetch, and
            whatever else does not depend on the size.
        bytes_per_token: KV bytes of one token.
        bytes_per_s: bandwidth.
    """

    latency_s: float
    bytes_per_token: float
    bytes_per_s: float

    def transfer(self, tokens: int) -> float:
        """Return the seconds for the KV blocks of so many tokens."""
        return self.latency_s + tokens * self.bytes_per_token / self.bytes_per_s
