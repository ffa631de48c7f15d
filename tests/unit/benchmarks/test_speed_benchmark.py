"""The structure of the speed benchmark: nothing here measures a time."""

from pathlib import Path

import pytest

from benchmarks.speed.accounting import read_cpu_s, read_peak_memory_mb
from benchmarks.speed.comparison import find_changes, format_changes
from benchmarks.speed.load import LoadFailed, find_percentile, summarize_log
from benchmarks.speed.programs import ProgramMissing, find_program
from benchmarks.speed.report import write_report
from benchmarks.speed.requests import ALONE, MANY, USUAL, Case
from benchmarks.speed.results import Results, Spread
from benchmarks.speed.stalls import Looks
from benchmarks.speed.targets import judge
from benchmarks.speed.variants import (
    BEFORE,
    FLOOR,
    ROUTER,
    Contender,
    parse_contender,
)
from pdrouter.tools.envoy_config import Address

ABOUT = {"command": "x", "machine": "2 cores", "python": "3.11", "rounds": 3, "before": "abc"}


def make_results(scenario: str, case: str, **figures: dict[str, list[float]]) -> Results:
    """Results of one case; `figures` maps a figure to samples by variant."""
    results = Results(dict(ABOUT))
    for figure, by_variant in figures.items():
        for variant, samples in by_variant.items():
            for sample in samples:
                results.add(scenario, case, variant, {figure: sample})
    return results


@pytest.mark.parametrize(
    ("text", "contender"),
    [
        ("go=127.0.0.1:9000", Contender("go", Address("127.0.0.1", 9000))),
        ("go=[::1]:9000,pid=7", Contender("go", Address("::1", 9000), (7,))),
        ("a b=host:1,pid=7,pid=8", Contender("a b", Address("host", 1), (7, 8))),
    ],
)
def test_a_contender_is_a_name_an_address_and_its_processes(
    text: str, contender: Contender
) -> None:
    assert parse_contender(text) == contender


@pytest.mark.parametrize(
    "text", ["", "go", "=127.0.0.1:1", "go=127.0.0.1", "go=h:1,7", "go=h:1,pid=x", "floor=h:1"]
)
def test_other_contenders_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_contender(text)


def test_a_missing_program_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.programs.shutil.which", lambda *_, **__: None)
    with pytest.raises(ProgramMissing, match="apt-get install -y nghttp2-client"):
        find_program("h2load")


def test_own_processes_are_accounted_for() -> None:
    pid = Path("/proc/self").resolve().name
    assert read_cpu_s((int(pid),)) > 0
    assert read_peak_memory_mb((int(pid),)) > 1
    assert read_cpu_s(()) == 0


def test_a_log_of_requests_is_summarized() -> None:
    lines = ["1000000\t200\t500000", "1200000\t200\t300000", "1400000\t503\t600000"]
    report = summarize_log(lines, 5)
    assert (report.succeeded, report.failed) == (2, 3)
    assert report.seconds == pytest.approx(1.0)
    assert (report.p50_us, report.p99_us) == (300000, 500000)


def test_a_load_of_which_nothing_succeeds_has_failed() -> None:
    with pytest.raises(LoadFailed, match="none of 2"):
        summarize_log(["1\t503\t1"], 2)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [find_percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_looks_are_counted_between_two_readings() -> None:
    def page(*counts: int) -> str:
        name = "pdrouter_event_loop_stall_seconds_bucket"
        bounds = ("0.005", "0.01", "0.02", "+Inf")
        rows = zip(bounds, counts, strict=True)
        return "\n".join(f'{name}{{le="{bound}"}} {count}.0' for bound, count in rows)

    before, after = Looks.parse(page(10, 10, 12, 12)), Looks.parse(page(19, 20, 22, 22))
    assert after.since(before) == {"stalls_above_5_ms_percent": 10.0, "longest_stall_ms": 10.0}
    endless = Looks.parse(page(1, 1, 1, 2)).since(Looks({}))
    assert endless == {"stalls_above_5_ms_percent": 50.0, "longest_stall_ms": 20.0}
    idle = after.since(after)
    assert idle == {"stalls_above_5_ms_percent": 0.0, "longest_stall_ms": 0.0}


def test_ratios_are_formed_in_each_round() -> None:
    results = make_results(
        "requests", "c", server_cpu_us={ROUTER: [200, 600, 900], BEFORE: [100, 200, 300]}
    )
    assert results.ratio("requests", "c", "server_cpu_us", ROUTER, BEFORE) == Spread(3, 2, 3)
    assert results.ratio("requests", "c", "server_cpu_us", ROUTER, FLOOR) is None


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = make_results("requests", "c", p50_us={ROUTER: [1.5, 2.0], FLOOR: [1.0, 1.0]})
    results.write(tmp_path / "a.json")
    assert Results.read(tmp_path / "a.json") == results


def test_other_files_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"findings": []}')
    with pytest.raises(ValueError, match="holds no results"):
        Results.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("case", "percent"), [(USUAL, 38), (MANY, 33), (Case(16, 220), 60), (Case(16, 1000), 60)]
)
def test_cpu_is_judged_beside_the_earlier_router(case: Case, percent: float) -> None:
    for cpu, met in ((percent, True), (percent + 1, False)):
        samples: dict[str, list[float]] = {ROUTER: [cpu], BEFORE: [100.0]}
        results = make_results("requests", str(case), server_cpu_us=samples)
        assert [verdict.met for verdict in judge(results)] == [met]


@pytest.mark.parametrize(("p50", "met"), [(164.0, True), (166.0, False)])
def test_latency_is_judged_by_what_is_added_to_the_floor(p50: float, met: bool) -> None:
    samples: dict[str, list[float]] = {FLOOR: [100.0], BEFORE: [200.0], ROUTER: [p50]}
    results = make_results("requests", str(ALONE), p50_us=samples)
    assert [verdict.met for verdict in judge(results)] == [met]


@pytest.mark.parametrize(("envoy", "rate", "met"), [(55.0, 270.0, True), (56.0, 269.0, False)])
def test_envoy_and_throughput_are_judged_at_high_concurrency(
    envoy: float, rate: float, met: bool
) -> None:
    results = make_results(
        "requests",
        str(MANY),
        envoy_cpu_us={ROUTER: [envoy], BEFORE: [100.0]},
        requests_per_s={ROUTER: [rate], BEFORE: [100.0]},
    )
    assert [verdict.met for verdict in judge(results)] == [met, met]


def test_streams_are_judged_beside_the_floor() -> None:
    results = make_results(
        "streaming",
        "64 streams of 200 tokens",
        messages={ROUTER: [3.0, 3.5]},
        tokens_per_s={ROUTER: [99.0], FLOOR: [100.0]},
        token_p99_us={ROUTER: [121.0], FLOOR: [100.0]},
    )
    assert [verdict.met for verdict in judge(results)] == [False, True, False]


def test_waiting_requests_must_all_complete_in_little_memory() -> None:
    results = make_results(
        "waiting", "5000 requests", failed={ROUTER: [1.0]}, peak_memory_mb={ROUTER: [299.0]}
    )
    assert [verdict.met for verdict in judge(results)] == [False, True]


def test_the_worst_stall_of_a_scenario_counts() -> None:
    results = make_results("pods", "100 pods", longest_stall_ms={ROUTER: [5.0, 2.0]})
    results.add("pods", "1000 pods", ROUTER, {"longest_stall_ms": 10.0})
    (verdict,) = judge(results)
    assert not verdict.met
    assert "1000 pods" in verdict.found


@pytest.mark.parametrize(("stall", "met"), [(20.0, True), (50.0, False)])
def test_the_largest_bodies_may_hold_the_loop_longer(stall: float, met: bool) -> None:
    results = make_results("requests", str(Case(16, 1000)), longest_stall_ms={ROUTER: [stall]})
    assert [verdict.met for verdict in judge(results)] == [met]


def test_only_what_leaves_the_noise_is_a_change() -> None:
    old = make_results(
        "waiting",
        "c",
        noisy={ROUTER: [1.0, 2.0, 3.0]},
        slower={ROUTER: [1.0, 1.1, 1.2]},
        little={ROUTER: [1.0, 1.0, 1.0]},
    )
    new = make_results(
        "waiting",
        "c",
        noisy={ROUTER: [2.5, 3.0, 4.0]},
        slower={ROUTER: [2.0, 2.2, 2.4]},
        little={ROUTER: [1.01, 1.01, 1.01]},
    )
    (change,) = find_changes(old, new)
    assert change.key.figure == "slower"
    assert "+100%" in "\n".join(format_changes([change]))
    assert list(format_changes(find_changes(old, old))) == ["Nothing has changed beyond the noise."]


def test_a_slower_machine_is_no_change() -> None:
    def measure(factor: float) -> Results:
        samples = {ROUTER: [3 * factor, 3.1 * factor], BEFORE: [factor, factor]}
        return make_results("requests", "c", server_cpu_us=samples)

    changed = {change.key.variant for change in find_changes(measure(1.0), measure(2.0))}
    assert changed == {BEFORE}


def test_a_report_names_targets_ratios_and_figures(tmp_path: Path) -> None:
    samples: dict[str, list[float]] = {ROUTER: [200.0, 210.0], BEFORE: [100.0]}
    samples = {name: [*values, *values][:2] for name, values in samples.items()}
    results = make_results("requests", str(USUAL), server_cpu_us=samples, p50_us=samples)
    write_report(tmp_path, tmp_path / "runs", results)
    text = (tmp_path / "speed.md").read_text()
    assert "**missed**" in text
    assert f"| {USUAL} | {ROUTER} | 2.05 (2 … 2.1) |  | 2.05 (2 … 2.1) |  |" in text
    assert (tmp_path / "speed-requests.png").read_bytes().startswith(b"\x89PNG")
    assert Results.read(tmp_path / "runs" / "speed.json") == results
