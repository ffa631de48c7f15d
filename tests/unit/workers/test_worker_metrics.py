"""The metrics of several workers, put together to one page."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pdrouter.cluster.view import PodCache
from pdrouter.load.ledger import Ledger
from pdrouter.telemetry.page import render_page
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.workers import metrics_page
from pdrouter.workers.metrics_page import Page, add_up, parse_page


def page(kind: str, name: str, *samples: str) -> Page:
    return parse_page("\n".join((f"# TYPE {name} {kind}", *samples)) + "\n")


def values(page: Page) -> dict[str, float]:
    """Return the samples of a page as they are printed, and read again."""
    text = render_page(page.values()).decode()
    return {
        sample.name + (str(dict(sample.labels)) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_are_summed_by_their_labels() -> None:
    first = page("counter", "a_total", 'a_total{m="x"} 1', 'a_total{m="y"} 2')
    second = page("counter", "a_total", 'a_total{m="y"} 3')
    assert values(add_up([first, second])) == {"a_total{'m': 'x'}": 1, "a_total{'m': 'y'}": 5}


def test_histograms_are_summed_by_their_buckets() -> None:
    one = page(
        "histogram", "h", 'h_bucket{le="1"} 1', 'h_bucket{le="+Inf"} 2', "h_count 2", "h_sum 3"
    )
    assert values(add_up([one, one, one])) == {
        "h_bucket{'le': '1'}": 3,
        "h_bucket{'le': '+Inf'}": 6,
        "h_count": 6,
        "h_sum": 9,
    }


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("pdrouter_requests_in_flight", 3.0),
        ("gateway_in_flight_requests", 3.0),
        ("gateway_prefill_outstanding_requests", 2.0),
        ("pdrouter_pod_decode_requests", 2.0),
        ("pdrouter_pod_prefill_tokens", 2.0),
        ("pdrouter_info", 2.0),
        ("pdrouter_pod_ready", 2.0),
        ("pdrouter_pod_ejected", 2.0),
        ("pdrouter_pods", 2.0),
        ("pdrouter_pods_unmatched", 2.0),
        ("pdrouter_kubernetes_staleness_seconds", 2.0),
        ("pdrouter_pods_synced", 1.0),
        ("pdrouter_kubernetes_synced", 1.0),
    ],
)
def test_a_gauge_is_summed_unless_it_is_true_of_all(name: str, result: float) -> None:
    labels = '{namespace="n",pod="p"}'
    pages = [page("gauge", name, f"{name}{labels} {value}") for value in (1, 2)]
    assert list(values(add_up(pages)).values()) == [result]


def test_what_has_ended_counts_on_but_has_nothing_in_flight() -> None:
    past = {**page("counter", "a_total", "a_total 5"), **page("gauge", "g", "g 7")}
    now = {**page("counter", "a_total", "a_total 1"), **page("gauge", "g", "g 2")}
    assert values(add_up([now], [past])) == {"a_total": 6, "g": 2}
    assert values(add_up([], [past])) == {"a_total": 5}


def test_a_pod_that_no_worker_knows_has_no_series() -> None:
    labels = 'namespace="n",pod="{}"'
    chosen = "pd_selected_total"

    def count(pod: str) -> str:
        return f"{chosen}{{{labels.format(pod)}}} 1"

    past = page("counter", chosen, count("gone"), count("there"), count(""))
    ready = "pdrouter_pod_ready"
    now = page("gauge", ready, f"{ready}{{{labels.format('there')}}} 1")
    shown = [name for name in values(add_up([now], [past])) if name.startswith(chosen)]
    assert len(shown) == 2
    assert not any("gone" in name for name in shown)
    # Without an answer of any worker, nobody can tell which pods there are.
    assert len(values(add_up([], [past]))) == 3


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["count", "crash"])), max_size=30))
def test_a_counter_never_goes_backwards(events: list[tuple[int, str]]) -> None:
    """Whatever the workers do, as long as each is scraped before it ends."""
    counts = [0, 0, 0]
    past: Page = {}
    totals = [0.0]

    def read(number: int) -> Page:
        return page("counter", "a_total", f"a_total {counts[number]}")

    for number, event in events:
        if event == "count":
            counts[number] += 1
        else:
            past = add_up([], [past, read(number)])
            counts[number] = 0
        totals.append(values(add_up([read(each) for each in range(3)], [past]))["a_total"])
    assert all(former <= latter for former, latter in pairwise(totals))
    assert totals[-1] == sum(event == "count" for _, event in events)


def test_the_page_of_a_single_worker_says_what_the_worker_says() -> None:
    telemetry = RequestTelemetry(PodCache(), Ledger())
    telemetry.metrics.requests.ended.count("m", "ok", "200", "", "")
    telemetry.metrics.requests.seconds.observe(0.3, "m")
    own = telemetry.metrics.render()

    def read(text: bytes) -> set[Any]:
        return {
            (family.name, family.type, sample.name, str(sorted(sample.labels.items())), value)
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            for value in [sample.value]
        }

    assert read(render_page(add_up([parse_page(own.decode())]).values())) == read(own)
    # Those that are not summed are gauges that exist.
    gauges = {
        line.split()[2]
        for line in own.decode().splitlines()
        if line.startswith("# TYPE ") and line.endswith(" gauge")
    }
    assert gauges >= metrics_page._GREATEST | metrics_page._LEAST
