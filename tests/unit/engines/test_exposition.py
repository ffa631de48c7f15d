"""Series of a few families are found in Prometheus' text format."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from pdrouter.engines.exposition import Families, Series

FAMILIES = Families("x:running", "x:waiting", "x:seconds_sum")


def values(page: bytes) -> dict[str, list[float]]:
    return {name: [each.value for each in series] for name, series in FAMILIES.find(page).items()}


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (b"x:running 3\n", [3.0]),
        (b"x:running 3", [3.0]),
        (b"x:running{} 3\n", [3.0]),
        (b'x:running{model="m"} 3.5\r\n', [3.5]),
        (b'x:running{model="m"}\t3 1395066363000\n', [3.0]),
        (b'x:running{model="a}b{c"} 3\n', [3.0]),
        (rb'x:running{model="say \"hi\" 9"} 3', [3.0]),
        (rb'x:running{model="C:\\"} 3', [3.0]),
        (b'x:running{rank="0"} 1\nx:running{rank="1"} 2\n', [1.0, 2.0]),
        (b'x:running{rank="0"} 1\ny 5\nx:running{rank="1"} 2\n', [1.0, 2.0]),
        (b"# HELP x:running 7\n# TYPE x:running gauge\nx:running 1e3\n", [1000.0]),
        (b"x:running 0\n", [0.0]),
    ],
)
def test_series_are_found(page: bytes, found: list[float]) -> None:
    assert values(page) == {"x:running": found}


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\n\n",
        b"x:running_by_reason 3\n",
        b"xx:running 3\n",
        b" x:running 3\n",
        b"x:running\n3\n",
        b"x:running{ 3\n",
        b'x:running{model="m} 3\n',
        b'x:running{model="m"\n} 3\n',
        b"x:running NaN\n",
        b"x:running +Inf\n",
        b"x:running -1\n",
        b"x:running three\n",
        b"x:running 1,5\n",
        b"<html>x:running 3</html>",
        b"\x1f\x8b\x08\x00\xff\xfe",
    ],
)
def test_other_lines_and_values_that_make_no_sense_are_left_out(page: bytes) -> None:
    assert values(page) == {}


def test_a_broken_line_does_not_hide_its_neighbours() -> None:
    page = b'x:running{model="m 3\nx:running{model="n"} 4\nx:waiting nonsense\nx:seconds_sum 2\n'
    assert values(page) == {"x:running": [4.0], "x:seconds_sum": [2.0]}


def test_labels_are_read_as_they_stand() -> None:
    series = Series(rb'block_size="16",path="a,num=\"9\"",num_gpu_blocks="None",empty=""', 1.0)
    assert series.read_labels() == {
        "block_size": "16",
        "path": r"a,num=\"9\"",
        "num_gpu_blocks": "None",
        "empty": "",
    }


@given(st.binary(max_size=200))
def test_nothing_raises(noise: bytes) -> None:
    for page in (noise, b"x:running" + noise, b"x:running{" + noise, b'x:running{a="' + noise):
        for series in FAMILIES.find(page).values():
            assert all(math.isfinite(each.value) for each in series)
            assert all(isinstance(each.read_labels(), dict) for each in series)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.floats(min_value=0, max_value=1e15),
        min_size=1,
        max_size=5,
    )
)
def test_what_prometheus_writes_is_found(series: dict[str, float]) -> None:
    registry = CollectorRegistry()
    noise = Gauge("x:running_too", "x:running 9", ("model",), registry=registry)
    gauge = Gauge("x:running", 'Of "models" {and}\nx:running 8', ("model",), registry=registry)
    for model, value in series.items():
        noise.labels(model).set(1)
        gauge.labels(model).set(value)
    assert values(generate_latest(registry)) == {"x:running": list(series.values())}


@pytest.mark.parametrize("value", ["1.7e308", "1e16", "NaN", "+Inf", "-1", "9" * 400])
def test_absurd_values_are_left_out(value: str) -> None:
    assert Families("a").find(f"a 1\na {value}\n".encode())["a"] == [Series(b"", 1.0)]


def test_a_long_run_without_a_value_is_no_label() -> None:
    assert Series(b"a" * 100_000 + b',b="c"', 1.0).read_labels() == {"b": "c"}


_NAMES = st.lists(
    st.text(st.sampled_from("ab:_"), min_size=1, max_size=5), min_size=1, max_size=8, unique=True
)


@given(_NAMES, _NAMES)
def test_names_that_begin_alike_are_told_apart(wanted: list[str], others: list[str]) -> None:
    present = {*wanted, *others}
    page = "".join(f"{name} 1\n" for name in sorted(present)).encode()
    assert set(Families(*wanted).find(page)) == set(wanted)
