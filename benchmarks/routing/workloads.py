"""Makes workloads, for those who have no traces: each a pattern that routing must cope with."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from random import Random
from types import MappingProxyType

from benchmarks.routing.cluster.workload import (
    BLOCK_TOKENS,
    SimulatedRequest,
    Workload,
    link_turns,
    make_prompt,
)

_Draft = tuple[float, tuple[int, ...], int, int]
"""Arrival, block ids, prompt tokens, output tokens."""


def make_workload(name: str, requests: int, seed: int = 0) -> Workload:
    """Return a made-up workload; the same one for the same arguments.

    Args:
        name: one of `GENERATORS`.
        requests: how many requests it has.
        seed: where chance begins.
    """
    drafts = sorted(islice(GENERATORS[name](Random(f"{name}/{seed}")), requests))
    return Workload(
        name,
        link_turns(
            [
                SimulatedRequest(arrival, make_prompt(blocks, tokens), output)
                for arrival, blocks, tokens, output in drafts
            ]
        ),
    )


def _share_system_prompts(random: Random) -> Iterator[_Draft]:
    """Applications with a long system prompt each, a few of them much used; short questions."""
    ids = count()
    prompts = [_take(ids, random.randint(4, 24)) for _ in range(40)]
    weights = [1.0 / (rank + 1) for rank in range(len(prompts))]
    now = 0.0
    while True:
        now += random.expovariate(4.0)
        system = random.choices(prompts, weights)[0]
        question = round(random.lognormvariate(6.0, 0.8))
        yield (now, *_extend(system, question, ids), _draw_output(random))


def _chat(random: Random) -> Iterator[_Draft]:
    """Conversations of several turns; each prompt is the one before, its answer and a question."""
    ids = count()
    system = _take(ids, 2)
    now = 0.0
    while True:
        now += random.expovariate(0.8)
        at, blocks = now, system
        for _ in range(random.randint(1, 9)):
            blocks, tokens = _extend(blocks, round(random.lognormvariate(6.5, 1.0)), ids)
            output = _draw_output(random)
            yield at, blocks, tokens, output
            at += 5.0 + random.expovariate(1 / 20.0)


def _ask_about_documents(random: Random) -> Iterator[_Draft]:
    """Long documents, each asked about a few times within minutes."""
    ids = count()
    now = 0.0
    while True:
        now += random.expovariate(1.0)
        document = _take(ids, min(160, round(random.lognormvariate(3.5, 0.8)) + 4))
        for _ in range(random.randint(1, 5)):
            asked = now + random.expovariate(1 / 60.0)
            yield (asked, *_extend(document, random.randint(20, 200), ids), _draw_output(random))


def _burst(random: Random) -> Iterator[_Draft]:
    """A steady trickle, and now and then dozens of requests at once that share a beginning."""
    ids = count()
    system = _take(ids, 2)
    now = 0.0
    while True:
        now += random.expovariate(2.0)
        if random.random() < 0.02:
            shared = (*system, *_take(ids, random.randint(4, 12)))
            for _ in range(random.randint(20, 60)):
                tokens = round(random.lognormvariate(6.0, 0.6))
                at = now + random.random()
                yield (at, *_extend(shared, tokens, ids), _draw_output(random))
        else:
            tokens = round(random.lognormvariate(7.5, 1.0))
            yield (now, *_extend(system, tokens, ids), _draw_output(random))


def _mix_lengths(random: Random) -> Iterator[_Draft]:
    """Short questions, and now and then a prompt that takes an engine seconds; little in common."""
    ids = count()
    system = _take(ids, 1)
    now = 0.0
    while True:
        now += random.expovariate(4.0)
        long = random.random() < 0.05
        tokens = random.randint(30_000, 65_536) if long else round(random.lognormvariate(6.5, 0.7))
        yield (now, *_extend(system, tokens, ids), _draw_output(random))


def _take(ids: Iterator[int], blocks: int) -> tuple[int, ...]:
    return tuple(islice(ids, blocks))


def _extend(
    blocks: tuple[int, ...], tokens: int, ids: Iterator[int]
) -> tuple[tuple[int, ...], int]:
    """Return whole blocks with so many tokens after them, and the size of it all."""
    size = len(blocks) * BLOCK_TOKENS + max(1, min(tokens, 65_536))
    return (*blocks, *_take(ids, size // BLOCK_TOKENS - len(blocks))), size


def _draw_output(random: Random) -> int:
    return max(1, min(2000, round(random.lognormvariate(5.3, 0.8))))


GENERATORS: Mapping[str, Callable[[Random], Iterator[_Draft]]] = MappingProxyType(
    {
        "system-prompts": _share_system_prompts,
        "chat": _chat,
        "documents": _ask_about_documents,
        "bursts": _burst,
        "short-and-long": _mix_lengths,
    }
)
