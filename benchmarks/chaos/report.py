"""The table of a chaos run, and its place in the docs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.chaos.plan import Kind
from benchmarks.chaos.run import Report
from benchmarks.chaos.tally import Breach

BEGIN = "<!-- The table of `make chaos` begins here. -->"
END = "<!-- The table of `make chaos` ends here. -->"

_FAULTS = (Kind.PREFILL_FAULT, Kind.DECODE_FAULT, Kind.TRANSFER_FAULT, Kind.METRICS_FAULT)
_RESTARTS = {
    Kind.CHURN: "Changes of the list of pods",
    Kind.ENGINE_RESTART: "Engines started again",
    Kind.ENGINE_OUTAGE: "Engines away for a second",
    Kind.ROUTER_STOP: "Routers stopped and started",
    Kind.ROUTER_KILL: "Routers killed and started",
    Kind.ENVOY_RESTART: "Envoys started again",
}


def format_reports(reports: Mapping[str, Report]) -> str:
    """Return the table: a column for each run."""
    lines = [f"| | {' | '.join(reports)} |", f"|---|{'---:|' * len(reports)}"]
    for tell in (_tell_plan, _tell_outcomes, _tell_counters, _tell_promises):
        columns = [tell(report) for report in reports.values()]
        for name in dict.fromkeys(name for column in columns for name in column):
            cells = " | ".join(column.get(name, "0") for column in columns)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, table: str) -> None:
    """Put a table between the markers of a page.

    Raises:
        ValueError: the page does not have them.
    """
    head, _, rest = page.read_text().partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"{page} has no place for the table")
    page.write_text(f"{head}{BEGIN}\n{table}{END}{tail}")


def list_broken(report: Report) -> Sequence[str]:
    """Return the promises that were broken."""
    return [f"{breach}: {count}" for breach, count in report.tally.broken.items()]


def _tell_plan(report: Report) -> dict[str, str]:
    done = report.tally.disturbances
    return {
        "Requests": _count(len(report.plan.asks)),
        "Seed, plan": f"{report.plan.seed}, {report.plan.fingerprint}",
        "Faults set": _count(sum(done[kind] for kind in _FAULTS)),
        **{name: _count(done[kind]) for kind, name in _RESTARTS.items()},
    }


def _tell_outcomes(report: Report) -> dict[str, str]:
    tally = report.tally
    rows = {
        "Answered, each with the answer to its own prompt": tally.answered,
        "Invalid, refused with 400 or 404": tally.refused,
        **{f"Client left {when}": count for when, count in sorted(tally.left.items())},
        **{
            f"Cut {when}, for what served it had ended": count
            for when, count in sorted(tally.cut.items())
        },
        **{f"Error {kind}": count for kind, count in sorted(tally.errors.items())},
    }
    return {name: _count(count) for name, count in rows.items()}


_COUNTERS = {
    "pdrouter_prefill_attempts_total": "Prefill attempts, of the routers that lived at the end",
    "pdrouter_prefill_failures_total": "Of these failed",
    "pdrouter_handoff_failures_total": "Of these without a usable handle",
    "pdrouter_releases_total": "Releases of blocks, of these routers",
    "simulation:kv_fetches_total": "Transfers of blocks that were asked for",
    "vllm:nixl_num_kv_expired_reqs_total": "Blocks that nobody fetched until their lease ended",
}


def _tell_counters(report: Report) -> dict[str, str]:
    return {name: _count(report.counters.get(key, 0)) for key, name in _COUNTERS.items()}


def _tell_promises(report: Report) -> dict[str, str]:
    before, after, broken = report.before, report.after, report.tally.broken
    memory = (f"{each.resident_bytes / 2**20:.0f}" for each in (before, after))
    return {
        "Contract violations that engines saw": _count(broken[Breach.CONTRACT]),
        "Without an answer by the deadline": _count(broken[Breach.UNANSWERED]),
        "Malformed errors": _count(broken[Breach.MALFORMED_ERROR]),
        "Altered bodies": _count(broken[Breach.ALTERED]),
        "Wrong answers": _count(broken[Breach.WRONG_ANSWER]),
        "Left in routers: requests, ledger, bodies": _count(broken[Breach.LEFT_IN_ROUTER]),
        "Left in engines: KV blocks, rooms, running, waiting": _count(
            broken[Breach.LEFT_IN_ENGINE]
        ),
        "Exceptions in the log": _count(broken[Breach.ACCIDENT]),
        "Promises broken, of these and all others": _count(broken.total()),
        "Requests until 20 in a row were answered, when all was well": _count(report.tries),
        "Memory of the router, warm → at the end, MiB": " → ".join(memory),
        "Descriptors of the router": f"{before.descriptors} → {after.descriptors}",
        "Minutes": f"{report.seconds / 60:.1f}",
    }


def _count(number: int) -> str:
    return f"{number:,}"
