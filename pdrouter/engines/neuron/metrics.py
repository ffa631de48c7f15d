"""What Neuron's plugin for vLLM says beside vLLM's own metrics: the shapes that it has compiled."""

import re

from pdrouter.engines.reading import Found, add

_EXECUTIONS = "vllm_neuron:neff_execution_count"
_PADDING = "vllm_neuron:num_batched_tokens_padding"
_SUFFIXES = ("", "_total")
_PADDINGS = (_PADDING, f"{_PADDING}_total", f"{_PADDING}_sum")
FAMILIES = (*(f"{_EXECUTIONS}{suffix}" for suffix in _SUFFIXES), *_PADDINGS)

# Other numbers, such as that of prompts in a batch, may stand before or behind the length.
_BUCKET = re.compile(r"prefill(?:_[a-z]+[0-9]*)*?_s([1-9][0-9]{0,6})(?:_[a-z]+[0-9]*)*")
_LONGEST_NAME = 64
_MOST_BUCKETS = 64


def read_buckets(found: Found) -> tuple[int, ...] | None:
    """Return the prompt lengths that an engine is compiled for, ascending; None if unknown.

    They are in the names of what it has executed, such as `prefill_s1024`. An engine with more of
    them than anybody compiles pads next to nothing, or does not say what it seems to.
    """
    series = [each for suffix in _SUFFIXES for each in found.get(_EXECUTIONS + suffix, ())]
    names = {each.read_labels().get("bucket_name", "") for each in series}
    matches = [_BUCKET.fullmatch(name) for name in names if len(name) <= _LONGEST_NAME]
    buckets = {int(match[1]) for match in matches if match is not None}
    return tuple(sorted(buckets)) if 0 < len(buckets) <= _MOST_BUCKETS else None


def find_prefill(found: Found) -> bool | None:
    """Return whether an engine has been compiled for prompts; None for one that is no Neuron's.

    One that has executed nothing but decode steps has been compiled for nothing else.
    """
    return read_buckets(found) is not None if any(map(found.get, FAMILIES)) else None


def count_padding(found: Found) -> float | None:
    """Return how many tokens were computed only to fill up buckets; None if unknown."""
    return add(found, *_PADDINGS)
