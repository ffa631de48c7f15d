import json
from pathlib import Path

import pytest

from benchmarks.routing.__main__ import main
from benchmarks.routing.cluster.results import Summary
from benchmarks.routing.comparison import compare, find_held_load
from benchmarks.routing.experiment import Finding, Run, Scenario

SCENARIO = Scenario("chat", "h100", "8P+8D")


def make_finding(load: float, within: float, contender: str = "pdrouter") -> Finding:
    summary = Summary(
        requests=100,
        rejected=0,
        ttft_p50_s=1.0,
        ttft_p90_s=2.0,
        ttft_p99_s=3.0,
        ttft_mean_s=1.5,
        inter_token_p99_s=0.05,
        token_gap_p99_s=0.05,
        whole=0.0,
        within_ttft=within,
        goodput=within,
        hit_rate=0.1,
        wasted=0.0,
        prefill_balance=1.0,
        decode_balance=1.0,
        prefill_use=0.5,
        preemptions=0,
    )
    return Finding(Run(SCENARIO, contender, load), 10.0 * load, summary)


@pytest.mark.parametrize(
    ("shares", "held"),
    [
        ((1.0, 0.9, 0.8), 0.6),
        ((1.0, 0.95, 0.85), 0.7),
        ((1.0, 0.99, 0.95), None),
        ((0.8, 0.7, 0.6), None),
    ],
)
def test_the_held_load_lies_between_the_loads_around_it(
    shares: tuple[float, ...], held: float | None
) -> None:
    loads = (0.4, 0.6, 0.8)
    findings = [make_finding(load, share) for load, share in zip(loads, shares, strict=True)]

    assert find_held_load(findings) == (None if held is None else pytest.approx(held))


def test_ours_is_compared_to_the_best_of_the_others_where_it_is_worst() -> None:
    findings = [
        make_finding(load, share, contender)
        for load, shares in {
            0.5: {"aibrix": 1.0, "random": 0.9, "pdrouter": 1.0},
            0.8: {"aibrix": 0.8, "random": 0.7, "pdrouter": 0.76},
            1.0: {"aibrix": 0.4, "random": 0.3, "pdrouter": 0.1},
        }.items()
        for contender, share in shares.items()
    ]
    comparison = compare(SCENARIO, findings, [], 1.0)

    assert comparison.worst_ratio == pytest.approx(0.95)
    assert (comparison.worst_load, comparison.worst_rival) == (0.8, "aibrix")
    assert comparison.p99_ratio is None


def test_the_quick_benchmark_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--requests", "60", "--workloads", "chat", "bursts"]
    folders = ["--output", str(tmp_path), "--artefacts", str(tmp_path / "runs")]
    main([*arguments, "--processes", "1", *folders])
    printed = capsys.readouterr().out
    report = (tmp_path / "routing.md").read_text()
    written = json.loads((tmp_path / "runs" / "routing.json").read_text())

    for contender in ("random", "aibrix", "sglang-cache-aware", "mooncake", "pdrouter"):
        assert contender in printed
        assert f"| {contender} |" in report
    for plot in ("routing.png", "runs/routing-h100-8p-8d.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    assert "](routing.png)" in report
    assert {finding["workload"] for finding in written["findings"]} == {"chat", "bursts"}


def test_the_two_that_the_report_compares_must_be_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", "--contenders", "pdrouter", "mooncake"])
    assert "the report compares aibrix and pdrouter" in capsys.readouterr().err
