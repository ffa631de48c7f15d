from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.routing.__main__ import main
from benchmarks.routing.aims import list_aims
from benchmarks.routing.cluster.results import Summary, Targets
from benchmarks.routing.comparison import Comparison, Spread, find_held_load
from benchmarks.routing.experiment import Finding, Run, Scenario, Source, Sweep, perform_sweep

SCENARIO = Scenario("chat", "h100", "8P+8D")


def make_finding(
    load: float, within: float, contender: str = "pdrouter", *, seed: int = 0, gap_s: float = 0.05
) -> Finding:
    summary = Summary(
        requests=100,
        rejected=0,
        ttft_p50_s=1.0,
        ttft_p90_s=2.0,
        ttft_p99_s=3.0,
        ttft_mean_s=1.5,
        inter_token_p99_s=gap_s,
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
    return Finding(Run(SCENARIO, contender, load, seed), 10.0 * load, summary)


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


def test_ours_is_compared_to_the_best_simple_one_where_it_is_farthest_below() -> None:
    findings = [
        make_finding(load, share, contender)
        for load, shares in {
            0.2: {"random": 0.9, "pdrouter": 0.1},
            0.5: {"aibrix": 1.0, "random": 0.95, "least-request": 0.96, "pdrouter": 0.98},
            0.8: {"aibrix": 0.8, "random": 0.7, "least-request": 0.6, "pdrouter": 0.69},
            1.0: {"aibrix": 0.4, "random": 0.3, "pdrouter": 0.1},
        }.items()
        for contender, share in shares.items()
    ]
    worst = Comparison(SCENARIO, findings, 1.0).find_worst()

    assert worst is not None
    assert worst.points == pytest.approx(1.0)
    assert (worst.load, worst.rival) == (0.8, "random")


def test_a_contender_that_was_run_with_several_seeds_has_a_spread() -> None:
    findings = [
        make_finding(load, share, seed=seed)
        for seed, shares in enumerate(((0.95, 0.85), (1.0, 0.8)))
        for load, share in zip((0.4, 0.6), shares, strict=True)
    ]
    comparison = Comparison(SCENARIO, findings, 1.0)

    held = comparison.find_held("pdrouter")
    assert held is not None
    assert held.mean == pytest.approx(0.5)
    assert Spread.of((0.85, 0.8)) == Spread(0.825, 0.8, 0.85)
    assert Spread.of(()) is None
    assert comparison.equal_load is None
    assert comparison.held_ratio is None


def test_gaps_are_compared_to_those_of_never_serving_whole() -> None:
    findings = [
        make_finding(load, 1.0, contender, gap_s=gap_s)
        for load, gaps in {0.4: (0.02, 0.02), 0.6: (0.03, 0.02)}.items()
        for contender, gap_s in zip(("pdrouter", "pdrouter-never"), gaps, strict=True)
    ]

    found = Comparison(SCENARIO, findings, 1.0).find_greatest_gap_ratio()

    assert found is not None
    assert found == pytest.approx((1.5, 0.6))


def test_a_load_that_is_not_among_those_tried_is_bounded_by_them() -> None:
    findings = [make_finding(load, 0.95) for load in (0.4, 0.6)]
    findings += [make_finding(load, 0.85, "aibrix") for load in (0.4, 0.6)]
    comparison = Comparison(SCENARIO, findings, 1.0)

    assert comparison.describe_held("pdrouter") == "> 0.60"
    assert comparison.describe_held("aibrix") == "< 0.40"
    assert comparison.describe_held("random") == "-"


def test_aims_say_what_is_reached_and_what_is_missed() -> None:
    def compare(shape: str, held: dict[str, float]) -> Comparison:
        scenario = Scenario("conversation", "h100", shape)
        findings = [
            replace(finding, run=replace(finding.run, scenario=scenario))
            for contender, load in held.items()
            for finding in (
                make_finding(load - 0.1, 0.95, contender),
                make_finding(load + 0.1, 0.85, contender),
            )
        ]
        return Comparison(scenario, findings, 1.0)

    lines = list(
        list_aims(
            [
                compare("8P+8D", {"pdrouter": 1.0, "aibrix": 0.7}),
                compare("8P+8D-two-routers", {"pdrouter": 0.96}),
                compare("8P+8D-four-routers", {"pdrouter": 0.8}),
            ]
        )
    )

    assert [line.split(" | ")[2:] for line in lines[3:-1]] == [
        ["1.429", "met |"],
        ["-4%", "met |"],
        ["-20%", "**missed** |"],
    ]


def test_a_sweep_goes_on_until_one_load_is_held_and_one_is_not() -> None:
    source = Source(None, 200, "both")
    findings = perform_sweep(Sweep(SCENARIO, "pdrouter", 0, (0.2,)), source, Targets())
    shares = {finding.run.load: finding.summary.within_ttft for finding in findings}

    assert len(shares) > 1
    assert shares[0.2] >= 0.9
    assert min(shares.values()) < 0.9 or max(shares) >= 1.8
    assert list(shares) == sorted(shares)


def test_a_sweep_does_not_repeat_what_is_known() -> None:
    source = Source(None, 100, "both")
    sweep = Sweep(SCENARIO, "pdrouter", 0, (0.2, 0.4), bounded=True)
    first, second = perform_sweep(sweep, source, Targets())
    again = replace(sweep, known={first.run: first.summary.within_ttft})

    assert perform_sweep(again, source, Targets()) == [second]


QUICK = ["--quick", "--requests", "60", "--processes", "1"]


def test_the_quick_benchmark_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--output", str(tmp_path), "--artefacts", str(tmp_path / "runs")]
    main([*QUICK, "--workloads", "chat", "bursts", *folders])
    printed = capsys.readouterr().out
    report = (tmp_path / "routing.md").read_text()

    for contender in ("random", "aibrix", "sglang-cache-aware", "mooncake", "pdrouter"):
        assert contender in printed
        assert f"| {contender} |" in report
    for plot in ("routing.png", "runs/routing-h100-8p-8d.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    assert "](routing.png)" in report
    assert "### chat" in report
    assert "### bursts" in report


def test_a_report_is_made_of_parts_that_were_done_one_after_the_other(tmp_path: Path) -> None:
    folders = ["--output", str(tmp_path), "--artefacts", str(tmp_path / "runs")]
    main([*QUICK, "--workloads", "chat", "--contenders", "pdrouter", *folders])
    shape = ["--shapes", "8P+8D-two-routers"]
    main([*QUICK, *shape, "--workloads", "chat", "--contenders", "pdrouter", *folders])
    (written,) = (tmp_path / "runs").glob("*.jsonl")
    lines = written.read_text().splitlines()
    main([*QUICK, "--workloads", "chat", "--contenders", "pdrouter", *folders])
    report = (tmp_path / "routing.md").read_text()

    assert len(lines) == len(set(lines)) == 6
    assert written.read_text().splitlines() == lines
    assert "## 8P+8D, h100" in report
    assert "## 8P+8D-two-routers, h100" in report
    assert "## Several routers" in report
