"""What an engine says of itself, at one moment."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestMeans:
    """What a request takes on an engine, of late; None where it does not say, or has had none.

    Attributes:
        queue_s: seconds that it waits.
        prefill_s: seconds of computing its prompt.
        decode_s: seconds of generating behind the first token.
        prompt_tokens: tokens of its prompt.
        output_tokens: tokens of its answer.
    """

    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class EngineSample:
    """Load signals of one engine; None for those that it does not give. All are finite.

    Attributes:
        at: when they were read, on the clock of the ledger.
        own_requests: requests that this router had there at that moment.
        running: requests that run.
        waiting: requests that wait.
        kv_usage: share of the KV memory in use, 0 to 1.
        kv_capacity_tokens: size of the KV memory, in tokens.
        generated_tokens_per_s: tokens generated per second since the sample before.
        prefill_seconds: mean duration of a prefill, as the engine counts it.
        padded_tokens: tokens that were computed only to fill up buckets of static shapes.
        gap_s: mean time between two tokens, of late.
        computes_prompts: whether an engine of static shapes is compiled for prompts; None for
            engines that need not be.
        cpu_usage: share of the memory for blocks on the host in use, 0 to 1.
        utilization: how much of what it can do it does, 0 to 1, as it says itself.
        prompt_tokens_per_s: prompt tokens computed per second since the sample before.
        means: what requests take there.
        kv_used_tokens: tokens in the KV memory; 0 if usage or size are not given.
        others: requests there that are not this router's: another's, or sent past all routers.
    """

    at: float
    own_requests: int = 0
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    kv_capacity_tokens: int | None = None
    generated_tokens_per_s: float | None = None
    prefill_seconds: float | None = None
    padded_tokens: float | None = None
    gap_s: float | None = None
    computes_prompts: bool | None = None
    cpu_usage: float | None = None
    utilization: float | None = None
    prompt_tokens_per_s: float | None = None
    means: RequestMeans | None = None
    kv_used_tokens: int = field(init=False)
    others: float = field(init=False)

    def __post_init__(self) -> None:
        """Work out what is asked for with every request."""
        there = 0.0 if self.running is None else self.running + (self.waiting or 0.0)
        usage, capacity = self.kv_usage, self.kv_capacity_tokens
        used = round(usage * capacity) if usage and capacity else 0
        object.__setattr__(self, "kv_used_tokens", used)
        object.__setattr__(self, "others", max(0.0, there - self.own_requests))


def find_free_tokens(sample: EngineSample | None) -> int | None:
    """Return how many tokens an engine has KV memory for that no request needs; None if unknown."""
    if sample is None or sample.kv_capacity_tokens is None or sample.kv_usage is None:
        return None
    return max(0, sample.kv_capacity_tokens - sample.kv_used_tokens)


def count_free_tokens(samples: Mapping[str, EngineSample], uids: Iterable[str]) -> float | None:
    """Return the tokens that these pods' free KV memory holds; None if one does not tell."""
    total = 0.0
    for uid in uids:
        free = find_free_tokens(samples.get(uid))
        if free is None:
            return None
        total += free
    return total


def count_kv_capacity(samples: Mapping[str, EngineSample], uids: Iterable[str]) -> float | None:
    """Return the tokens that these pods' KV memory holds together; None if one does not tell."""
    total = 0.0
    for uid in uids:
        sample = samples.get(uid)
        if sample is None or sample.kv_capacity_tokens is None:
            return None
        total += sample.kv_capacity_tokens
    return total


class Samples(dict[str, EngineSample]):
    """The newest samples by UID, without those that are not fresh any more."""

    def put(self, uid: str, sample: EngineSample) -> None:
        """Take a new one."""
        self[uid] = sample

    def drop(self, uid: str) -> None:
        """Forget one that is too old, or of another page."""
        self.pop(uid, None)

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self.pop(uid, None)
