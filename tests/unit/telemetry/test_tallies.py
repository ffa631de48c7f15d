"""Counters and histograms of our own show what Prometheus' own would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pdrouter.telemetry.tallies import HistogramTally, Tally

BOUNDS = (0.001, 0.5, 1, 10)
LABELS = st.sampled_from(["", "a", 'b"\n\\'])


def read(registry: CollectorRegistry) -> list[str]:
    """Return all samples of a page but the times at which they were created."""
    return sorted(
        f"{family.name} {family.type} {sample.name} {sorted(sample.labels.items())} {sample.value}"
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    )


@given(values=st.lists(st.tuples(LABELS, st.sampled_from([0, 0.001, 0.25, 0.5, 1, 3, 10, 11]))))
def test_a_histogram_has_the_same_samples(values: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally("h", "text", BOUNDS, ("label",), registry=ours)
    histogram = Histogram("h", "text", ("label",), buckets=BOUNDS, registry=theirs)
    for label, value in values:
        tally.observe(value, label)
        histogram.labels(label).observe(value)
    assert read(ours) == read(theirs)


def test_a_histogram_without_labels_is_shown_from_the_beginning() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = HistogramTally("h", "text", BOUNDS, registry=ours)
    histogram = Histogram("h", "text", buckets=BOUNDS, registry=theirs)
    assert read(ours) == read(theirs)
    tally.observe(0.5)
    histogram.observe(0.5)
    assert read(ours) == read(theirs)


@given(values=st.lists(st.tuples(LABELS, st.integers(0, 5))))
def test_a_counter_has_the_same_samples(values: list[tuple[str, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("c", "text", ("label",), registry=ours)
    counter = Counter("c", "text", ("label",), registry=theirs)
    for label, number in values:
        tally.count(label, number=number)
        counter.labels(label).inc(number)
    assert read(ours) == read(theirs)
