"""Reads request traces in the formats of Mooncake and Azure, compressed with gzip or not."""

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from random import Random

import msgspec

from benchmarks.routing.cluster.workload import (
    SimulatedRequest,
    Workload,
    link_turns,
    make_prompt,
)

_FILES = (
    # Mooncake's conversation trace says when requests came in steps of 3 s.
    ("conversation", "conversation_trace.jsonl.gz", 3.0),
    ("synthetic", "synthetic_trace.jsonl.gz", 0.0),
    ("azure-conversation", "AzureLLMInferenceTrace_conv.csv.gz", 0.0),
    ("azure-code", "AzureLLMInferenceTrace_code.csv.gz", 0.0),
)

TRACE_NAMES = tuple(name for name, _, _ in _FILES)


class _MooncakeRow(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(folder: Path, name: str, seed: int = 0) -> Workload:
    """Return one of the known traces.

    Args:
        folder: where its file is.
        name: one of `TRACE_NAMES`.
        seed: where chance begins, for arrivals that the trace gives only roughly.
    """
    file, spread_s = next((file, spread) for known, file, spread in _FILES if known == name)
    path = folder / file
    if ".jsonl" in file:
        return read_mooncake(path, name, spread_s=spread_s, seed=seed)
    return read_azure(path, name)


def read_mooncake(path: Path, name: str, *, spread_s: float = 0.0, seed: int = 0) -> Workload:
    """Read a trace in Mooncake's format: one JSON object per line.

    Args:
        path: the file.
        name: name of the workload.
        spread_s: seconds over which requests with the same timestamp are spread, evenly at random
            and in the order of the file; 0 to leave them at one instant.
        seed: where chance begins.
    """
    decode = msgspec.json.Decoder(_MooncakeRow).decode
    rows = [decode(line) for line in _open(path) if line.strip()]
    arrivals = _spread([row.timestamp / 1000.0 for row in rows], spread_s, Random(seed))
    return Workload(
        name,
        link_turns(
            [
                SimulatedRequest(
                    arrival, make_prompt(row.hash_ids, row.input_length), max(1, row.output_length)
                )
                for arrival, row in zip(arrivals, rows, strict=True)
            ]
        ),
    )


def read_azure(path: Path, name: str) -> Workload:
    """Read a trace in the format of the Azure LLM inference data sets: lengths, no prefixes.

    Args:
        path: the file.
        name: name of the workload.
    """
    # Seven digits of a second are one more than datetime reads.
    rows = [
        (
            datetime.fromisoformat(row["TIMESTAMP"][:26]),
            max(1, int(row["ContextTokens"])),
            max(1, int(row["GeneratedTokens"])),
        )
        for row in csv.DictReader(_open(path))
    ]
    start = rows[0][0]
    return Workload(
        name,
        tuple(
            SimulatedRequest((at - start).total_seconds(), make_prompt((), prompt), output)
            for at, prompt, output in rows
        ),
        shares_prefixes=False,
    )


def _open(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return iter(io.StringIO(text.decode(), newline=""))


def _spread(times: Sequence[float], spread_s: float, random: Random) -> list[float]:
    if not spread_s:
        return list(times)
    # Each request is moved within its own group's interval, so sorting keeps the groups apart; who
    # came first within a group is as in the file.
    return sorted(time + random.random() * spread_s for time in times)
