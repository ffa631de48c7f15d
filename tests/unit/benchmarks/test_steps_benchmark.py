"""The measure of one whole exchange still serves one."""

from benchmarks.exchange import RequestBench
from benchmarks.steps import ANSWER, make_body, make_pods


def test_an_exchange_is_served_in_two_legs_each_time() -> None:
    prefill, decode = make_pods(2)
    bench = RequestBench(prefill, decode, make_body(1000), ANSWER)
    bench.serve()
    bench.serve()
