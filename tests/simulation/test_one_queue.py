"""What one queue for all prefill pods would give, beside which choices of pods are judged."""

import pytest
from clusters import HARDWARE, make_request, make_workload

from benchmarks.routing.cluster.results import Targets
from benchmarks.routing.one_queue import main, simulate_one_queue

TARGETS = Targets(ttft_s=1.0, ttft_factor=2.0)
"""On this hardware 1,000 tokens take a second, and the first token of the answer a tenth."""


def test_a_request_waits_only_while_all_pods_are_busy() -> None:
    crowd = make_workload(*(make_request(0.0, 8000) for _ in range(3)))
    assert simulate_one_queue(crowd, HARDWARE, 3, TARGETS).ttft_p99_s == pytest.approx(8.1)
    assert simulate_one_queue(crowd, HARDWARE, 2, TARGETS).ttft_p99_s == pytest.approx(16.1)


def test_what_any_pod_has_computed_is_cached_for_all() -> None:
    def measure(*arrivals: float) -> float:
        again = make_workload(*(make_request(at, 1124, blocks=(1, 2)) for at in arrivals))
        return simulate_one_queue(again, HARDWARE, 2, TARGETS).hit_rate

    assert measure(0.0, 50.0) == pytest.approx(1024 / (2 * 1124))
    # While the first is computed, the second cannot find it.
    assert measure(0.0, 1.0) == 0


def test_who_is_late_is_not_within_the_target() -> None:
    crowd = make_workload(*(make_request(0.0, 8000) for _ in range(10)))
    # They are done after 8.1, 16.1, 24.1 s and so on; 17 s are allowed.
    assert simulate_one_queue(crowd, HARDWARE, 1, TARGETS).within_ttft == 0.2


def test_it_is_shown_at_rising_load(capsys: pytest.CaptureFixture[str]) -> None:
    main(["chat", "--requests", "40", "--loads", "0.5", "1"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "chat, 8P+8D, h100: one queue for all prefill pods"
    assert [line.partition(":")[0] for line in lines] == ["load 0.50", "load 1.00"]


def test_a_trace_needs_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["conversation"])
    assert "a trace needs --traces" in capsys.readouterr().err
