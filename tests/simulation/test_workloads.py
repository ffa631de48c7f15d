import gzip
import json
from pathlib import Path

import pytest
from clusters import make_request

from benchmarks.routing.cluster.workload import link_turns
from benchmarks.routing.traces import read_azure, read_mooncake, read_trace
from benchmarks.routing.workloads import GENERATORS, make_workload

MOONCAKE = [
    {"timestamp": 0, "input_length": 1000, "output_length": 52, "hash_ids": [46, 47]},
    {"timestamp": 3000, "input_length": 1024, "output_length": 1, "hash_ids": [46, 48]},
    {"timestamp": 3000, "input_length": 13, "output_length": 0, "hash_ids": [49]},
]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:48.1805901,0,109"
)


def write_mooncake(path: Path, rows: list[dict[str, object]] = MOONCAKE) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_mooncake_ids_of_whole_blocks_are_prefixes(tmp_path: Path, name: str) -> None:
    first, second, third = read_mooncake(write_mooncake(tmp_path / name), "x").requests

    assert (first.prompt.hashes, first.prompt.ends, first.prompt.size) == ((46,), (512,), 1000)
    assert (second.prompt.hashes, second.prompt.ends) == ((46, 48), (512, 1024))
    assert (third.prompt.hashes, third.prompt.size) == ((), 13)
    assert [request.arrival_s for request in (first, second, third)] == [0.0, 3.0, 3.0]
    # Every request generates something.
    assert [request.output_tokens for request in (first, second, third)] == [52, 1, 1]


def test_requests_of_one_timestamp_are_spread_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"timestamp": 3000 * (number // 4), "input_length": number + 1, "output_length": 1}
        | {"hash_ids": [number]}
        for number in range(12)
    ]
    path = write_mooncake(tmp_path / "trace.jsonl", rows)
    requests = read_mooncake(path, "x", spread_s=3.0, seed=5).requests

    assert [request.prompt_tokens for request in requests] == list(range(1, 13))
    for number, request in enumerate(requests):
        assert 3.0 * (number // 4) <= request.arrival_s < 3.0 * (number // 4) + 3.0
    assert requests == read_mooncake(path, "x", spread_s=3.0, seed=5).requests
    assert requests != read_mooncake(path, "x", spread_s=3.0, seed=6).requests


@pytest.mark.parametrize("compressed", [False, True])
def test_azure_traces_have_lengths_but_no_prefixes(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / ("trace.csv.gz" if compressed else "trace.csv")
    path.write_bytes(gzip.compress(AZURE.encode()) if compressed else AZURE.encode())
    workload = read_azure(path, "x")
    first, second = workload.requests

    assert not workload.shares_prefixes
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(1.5)
    assert second.prompt_tokens == 1
    assert first.prompt.hashes == ()


def test_traces_are_found_by_name(tmp_path: Path) -> None:
    write_mooncake(tmp_path / "synthetic_trace.jsonl.gz")

    assert len(read_trace(tmp_path, "synthetic").requests) == 3


@pytest.mark.parametrize("name", GENERATORS)
def test_made_up_workloads_are_the_same_for_the_same_seed(name: str) -> None:
    workload = make_workload(name, 200, seed=1)

    assert workload == make_workload(name, 200, seed=1)
    assert workload != make_workload(name, 200, seed=2)


@pytest.mark.parametrize("name", GENERATORS)
def test_made_up_workloads_are_in_order_and_share_prefixes(name: str) -> None:
    requests = make_workload(name, 500).requests
    arrivals = [request.arrival_s for request in requests]
    first_blocks = [request.prompt.hashes[0] for request in requests if request.prompt.hashes]

    assert arrivals == sorted(arrivals)
    assert len(requests) == 500
    assert len(set(first_blocks)) < len(first_blocks) / 1.5
    for request in requests:
        assert len(request.prompt.hashes) == request.prompt_tokens // 512


def test_answers_are_known_from_the_prompt_that_comes_next() -> None:
    first = make_request(0.0, 1100, 700, (1, 2))
    other = make_request(1.0, 600, 600, (1,))
    following = make_request(9.0, 2600, 10, (1, 2, 3, 4, 5))

    linked = link_turns([first, other, following])

    # 1800 tokens fill up a third block; the fourth has the next question in it.
    assert [request.answer_hashes for request in linked] == [(3,), (), ()]


def test_prompts_that_several_others_begin_are_nobodys_next_turn() -> None:
    same = [make_request(float(at), 1100, 700, (1, 2)) for at in range(2)]
    third = make_request(9.0, 2600, 10, (1, 2, 3, 4, 5))

    assert link_turns([*same, third]) == (*same, third)


def test_a_prompt_that_is_too_short_for_the_answer_is_not_the_next_turn() -> None:
    first = make_request(0.0, 1100, 700, (1, 2))
    second = make_request(9.0, 1600, 10, (1, 2, 3))

    assert link_turns([first, second]) == (first, second)
