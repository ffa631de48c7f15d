"""Durations, sizes and selectors in manifests."""

import pytest

from pdrouter.tools.doctor.objects.base import MatchExpression, Selector
from pdrouter.tools.doctor.quantities import Seconds, Size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("600s", 600),
        ("0s", 0),
        ("0", 0),
        (0, 0),
        ("1h30m", 5400),
        ("200ms", 0.2),
        ("1m0.5s", 60.5),
        ("15m", 900),
    ],
)
def test_durations_are_read(text: object, seconds: float) -> None:
    assert Seconds.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "600", "ten", "-1s", "1s ", "1d", None, 600])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        Seconds.parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16Mi", 16 * 1024**2),
        ("32Ki", 32 * 1024),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("16M", 16_000_000),
        ("1k", 1000),
        ("2Ti", 2 * 1024**4),
        ("4194304", 4194304),
        (4194304, 4194304),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: object, size: int) -> None:
    assert Size.parse(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "16 Mi", "16MiB", None])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [(Size(16 * 1024**2), "16Mi"), (Size(16711680), "16320Ki"), (Size(1000), "1000 bytes")],
)
def test_sizes_are_shown_for_people(size: Size, shown: str) -> None:
    assert str(size) == shown


def test_durations_are_shown_for_people() -> None:
    assert str(Seconds.parse("1m30s")) == "90s"


@pytest.mark.parametrize(
    ("requirement", "selected"),
    [
        (("a", "In", ["1", "2"]), True),
        (("a", "In", ["2"]), False),
        (("b", "In", ["1"]), False),
        (("a", "NotIn", ["2"]), True),
        (("a", "NotIn", ["1"]), False),
        (("b", "NotIn", ["1"]), True),
        (("a", "Exists", []), True),
        (("b", "Exists", []), False),
        (("a", "DoesNotExist", []), False),
        (("b", "DoesNotExist", []), True),
    ],
)
def test_selectors_select_by_expressions(
    requirement: tuple[str, str, list[str]], selected: bool
) -> None:
    assert Selector({}, [MatchExpression(*requirement)]).matches({"a": "1"}) is selected
