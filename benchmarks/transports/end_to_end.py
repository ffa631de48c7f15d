"""The end-to-end tests, through the real Envoy, over each transport."""

import asyncio
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.transports.contenders import TRANSPORTS

_PLUGIN = "benchmarks.transports.pytest_plugin"


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What became of the tests over one transport.

    Attributes:
        passed: how many passed.
        failed: those that failed, as `module::test`.
        skipped: how many were skipped.
    """

    passed: int
    failed: tuple[str, ...]
    skipped: int


async def run_tests(transport: str, paths: tuple[str, ...]) -> SuiteResult:
    """Run tests over a transport."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-tests-") as name:
        report = Path(name) / "report.xml"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", _PLUGIN),
            *("--transport", transport, f"--junitxml={report}", *paths),
            stdout=asyncio.subprocess.DEVNULL,
        )
        await process.wait()
        return read_results(report)


async def run_all_tests(paths: tuple[str, ...]) -> dict[str, object]:
    """Run tests over each transport; return what reports keep of it."""
    runs = {}
    for name in TRANSPORTS:
        print(f"{' '.join(paths)} over {name}", flush=True)
        runs[name] = asdict(await run_tests(name, paths))
    return {"paths": paths, "runs": runs}


def read_results(report: Path) -> SuiteResult:
    """Return what a JUnit report of pytest says."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or _has_error(case)]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = tuple(
        f"{str(case.get('classname')).rpartition('.')[2]}::{case.get('name')}" for case in failed
    )
    return SuiteResult(len(cases) - len(failed) - len(skipped), names, len(skipped))


def _has_error(case: ElementTree.Element) -> bool:
    return case.find("error") is not None
