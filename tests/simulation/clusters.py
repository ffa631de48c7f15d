"""Small clusters and workloads with round numbers, for tests of the simulator."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.routing.cluster.model import Hardware, Shape
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed
from benchmarks.routing.cluster.workload import SimulatedRequest, Workload, make_prompt

SERIAL = PrefillSpeed(
    seconds_per_token=0.001,
    seconds_per_token_squared=0.0,
    seconds_per_step=0.0,
    tokens_per_step=None,
)
BATCHING = replace(SERIAL, tokens_per_step=2048)
DECODE = DecodeSpeed(
    seconds_per_step=0.1, seconds_per_request=0.0, seconds_per_kv_token=0.0, slots=8
)
NO_LINK = Link(latency_s=0.0, bytes_per_token=0.0, bytes_per_s=1.0)
HARDWARE = Hardware(
    name="small",
    prefill=SERIAL,
    prefill_kv_tokens=64 * 512,
    decode=DECODE,
    decode_kv_tokens=100_000,
    local_prefill=SERIAL,
    link=NO_LINK,
)
TWO_AND_TWO = Shape("2P+2D", (1.0, 1.0), (1.0, 1.0))


def make_request(
    arrival_s: float, tokens: int, output: int = 1, blocks: Sequence[int] = ()
) -> SimulatedRequest:
    """A request whose first blocks have these ids."""
    return SimulatedRequest(arrival_s, make_prompt(blocks, tokens), output)


def make_workload(*requests: SimulatedRequest) -> Workload:
    """A workload of these requests."""
    return Workload("test", requests)
