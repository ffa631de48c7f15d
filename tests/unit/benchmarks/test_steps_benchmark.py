"""The measure of one whole exchange still serves one."""

import asyncio

import pytest

from benchmarks.exchange import RequestBench
from benchmarks.steps import ANSWER, make_body, make_pods


def test_an_exchange_is_served_in_two_legs_each_time() -> None:
    prefill, decode = make_pods(2)
    bench = RequestBench(prefill, decode, make_body(1000), ANSWER)
    bench.serve()
    bench.serve()


@pytest.mark.parametrize(("engine", "connector"), [("sglang", None), ("vllm", "offloading")])
def test_an_exchange_is_served_whose_legs_run_at_once(engine: str, connector: str | None) -> None:
    prefill, decode = make_pods(2, engine, connector)
    bench = RequestBench(prefill, decode, make_body(1000), ANSWER)
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        bench.serve(runner.get_loop())
        bench.serve(runner.get_loop())
