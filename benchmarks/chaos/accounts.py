"""What an installation holds when it should hold nothing, and what its router occupies."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.chaos.installation import Installation
from benchmarks.chaos.tally import Breach, Tally
from benchmarks.speed.processes import RouterProcess

NEVER = (
    "simulation:contract_violations_total",
    "simulation:prompt_mismatches_total",
    "simulation:unexpected_role_total",
    "simulation:duplicate_request_ids_total",
)
"""What engines count if a router breaks the contract."""

_ROUTER_GAUGES = (
    "pdrouter_requests_in_flight",
    "pdrouter_pod_prefill_requests",
    "pdrouter_pod_prefill_tokens",
    "pdrouter_pod_decode_requests",
    "pdrouter_body_bytes",
)
_ENGINE_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "trtllm_num_requests_running",
    "trtllm_num_requests_waiting",
    "simulation:kv_handles_outstanding",
    "simulation:rooms_open",
)
TOLD_BY_ENGINES = (
    "simulation:kv_fetches_total",
    "vllm:nixl_num_kv_expired_reqs_total",
)
TOLD_BY_ROUTERS = (
    "pdrouter_prefill_attempts_total",
    "pdrouter_prefill_failures_total",
    "pdrouter_handoff_failures_total",
    "pdrouter_releases_total",
)
"""Counters that the report tells."""

_PATIENCE_S = 30.0
_LOOK_S = 0.1
_STEADY_LOOKS = 5
_MORE_DESCRIPTORS = 16
_MORE_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process occupies while it has nothing to do.

    Attributes:
        resident_bytes: its memory.
        descriptors: its open files and connections.
    """

    resident_bytes: int
    descriptors: int


async def settle(installation: Installation, tally: Tally) -> None:
    """Wait until nothing is in flight; what stays is a broken promise."""
    deadline = time.monotonic() + _PATIENCE_S
    while held := await _find_held(installation):
        if time.monotonic() > deadline:
            for name, count in held.items():
                in_engine = name in _ENGINE_GAUGES
                breach = Breach.LEFT_IN_ENGINE if in_engine else Breach.LEFT_IN_ROUTER
                tally.note_broken(breach, f"{name}: {count:g}")
            return
        await asyncio.sleep(_LOOK_S)


async def measure(installation: Installation, before: Footprint | None = None) -> Footprint:
    """Return what the steady router occupies; connections that are idle get time to close."""
    for engine in installation.engines:
        engine.close_idle_connections()
    router = installation.steady.router
    if router is None:
        raise RuntimeError("the router has ended")
    deadline = time.monotonic() + _PATIENCE_S / 3
    found, steady = _read_footprint(router), 0
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_S)
        last, found = found, _read_footprint(router)
        steady = steady + 1 if found.descriptors == last.descriptors else 0
        if steady >= _STEADY_LOOKS and not (before and _find_growth(before, found)):
            break
    return found


def judge_growth(before: Footprint, after: Footprint, tally: Tally) -> None:
    """Note what has grown by more than it may."""
    for name in _find_growth(before, after):
        tally.note_broken(Breach.GROWTH, f"{name}: {before} became {after}")


def judge_engines(installation: Installation, tally: Tally) -> None:
    """Note what engines have seen that a router must not do."""
    for name in NEVER:
        count = sum(engine.count(name) for engine in installation.engines)
        if count:
            reasons = [engine.violations for engine in installation.engines if engine.violations]
            tally.note_broken(Breach.CONTRACT, f"{name}: {count:g} {reasons}", int(count))


def judge_logs(installation: Installation, tally: Tally) -> None:
    """Note exceptions and errors in the routers' logs."""
    for place in (installation.steady, installation.replaced):
        for line in place.accidents:
            tally.note_broken(Breach.ACCIDENT, line)


async def read_counters(installation: Installation) -> Counter[str]:
    """Return what engines, and the routers that run, have counted, added up over labels."""
    counters = Counter(
        {
            name: int(sum(engine.count(name) for engine in installation.engines))
            for name in (*_ENGINE_GAUGES, *TOLD_BY_ENGINES)
        }
    )
    for router in installation.routers:
        counters += await _read_samples(router)
    return counters


async def _find_held(installation: Installation) -> dict[str, int]:
    """Return what is not zero."""
    counters = await read_counters(installation)
    return {name: counters[name] for name in (*_ROUTER_GAUGES, *_ENGINE_GAUGES) if counters[name]}


async def _read_samples(router: RouterProcess) -> Counter[str]:
    samples: Counter[str] = Counter()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{router.admin_url}/metrics") as response,
    ):
        page = await response.text()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in _ROUTER_GAUGES or sample.name in TOLD_BY_ROUTERS:
                samples[sample.name] += int(sample.value)
    return samples


def _read_footprint(router: RouterProcess) -> Footprint:
    process = Path(f"/proc/{router.pid}")
    (line,) = (
        line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS:")
    )
    return Footprint(int(line.split()[1]) * 1024, len(list((process / "fd").iterdir())))


def _find_growth(before: Footprint, after: Footprint) -> Sequence[str]:
    return [
        name
        for name, grown, most in (
            ("memory", after.resident_bytes - before.resident_bytes, _MORE_BYTES),
            ("descriptors", after.descriptors - before.descriptors, _MORE_DESCRIPTORS),
        )
        if grown > most
    ]
