"""A short run of `make chaos`: everything fails, and every promise holds."""

import pytest

from benchmarks.chaos.__main__ import SCENARIOS
from benchmarks.chaos.plan import Kind
from benchmarks.chaos.report import format_reports, list_broken
from benchmarks.chaos.run import run_chaos

REQUESTS = 160
NAMES = (
    "NIXL pull",
    "NIXL pull, Envoy with a list of pods",
    "Neuron, older wire",
    "SGLang",
    "NIXL push",
)
"""One wire of each way in which legs hang together; `make chaos` has all."""


@pytest.mark.parametrize("name", NAMES)
async def test_all_promises_hold_while_everything_fails(name: str) -> None:
    report = await run_chaos(SCENARIOS[name], seed=3, requests=REQUESTS, tell=print)
    assert not list_broken(report), report.tally.examples
    # What was to be withstood has happened.
    assert report.tally.disturbances.keys() == set(Kind)
    assert report.tally.answered > REQUESTS / 10
    assert report.tally.left.total() > 0
    assert report.tally.errors.total() > 0
    assert f"| Requests | {REQUESTS} |" in format_reports({name: report})
