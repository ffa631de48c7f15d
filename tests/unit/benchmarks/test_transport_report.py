"""The report of `benchmarks/transports`: ratios, and what the end-to-end tests say."""

from pathlib import Path

import pytest

from benchmarks.transports.contenders import TRANSPORTS
from benchmarks.transports.end_to_end import SuiteResult, read_results
from benchmarks.transports.experiment import Samples, check_replies, count_lines
from benchmarks.transports.load import LoadFailed
from benchmarks.transports.report import find_ratio, write_report

REQUESTS = ("router_us", "envoy_us", "p50_us", "p99_us", "per_second", "failed")
STREAMS = ("stream_us", "message_us", "reply_bytes")
MEMORY = ("idle_mb", "full_mb", "kb_per_stream", "streams")


def make_samples() -> Samples:
    """Return samples in which http2 takes a quarter of what grpcio takes."""
    shares = {"grpcio": 1.0, "http2": 0.25}
    return {
        scenario: {
            name: {figure: [100.0 * share, 300.0 * share] for figure in figures}
            for name, share in shares.items()
        }
        for scenario, figures in (
            ("16 clients, 8 KB", REQUESTS),
            ("without Envoy", STREAMS),
            ("waiting", MEMORY),
        )
    }


def test_ratios_are_taken_within_rounds() -> None:
    samples = make_samples()
    samples["waiting"]["http2"]["full_mb"] = [50.0, 600.0]
    assert find_ratio(samples, "waiting", "http2", "full_mb") == pytest.approx((0.5 + 2) / 2)


def test_the_page_says_what_was_measured_and_what_fails() -> None:
    run = {"passed": 5, "failed": [], "skipped": 1}
    failing = {"passed": 2, "failed": ["test_tls::test_a[x]", "test_tls::test_a[y]"], "skipped": 1}
    page = write_report(
        {
            "samples": make_samples(),
            "lines": dict.fromkeys(TRANSPORTS, 7),
            "rounds": 2,
            "cores": 2,
            "load_average": 0.5,
            "versions": {"grpcio": "1"},
        },
        {"paths": ["tests/e2e"], "runs": {"grpcio": run, "http2": failing}},
    )
    assert "**http2** takes 0.25 to 0.25 of the router's CPU per request" in page
    assert "2 end-to-end tests pass over it, 2 fail." in page
    assert "* http2 fails `test_tls::test_a`, 2 cases" in page
    assert "| 16 clients, 8 KB | grpcio | 200 (100 to 300) |" in page


def test_transports_that_answer_differently_are_not_compared() -> None:
    samples = make_samples()
    with pytest.raises(LoadFailed):
        check_replies(samples)
    for figures in samples["without Envoy"].values():
        figures["reply_bytes"] = [1_000.0]
    check_replies(samples)


def test_all_sources_are_counted() -> None:
    assert all(count_lines(transport) > 100 for transport in TRANSPORTS.values())


def test_results_are_read_from_junit(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.e2e.test_a" name="one"/>'
        '<testcase classname="tests.e2e.test_a" name="two"><failure/></testcase>'
        '<testcase classname="tests.e2e.test_a" name="three"><error/></testcase>'
        '<testcase classname="tests.e2e.test_a" name="four"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_results(report) == SuiteResult(1, ("test_a::two", "test_a::three"), 1)
