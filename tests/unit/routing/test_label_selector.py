"""Label selectors mean what they mean in Kubernetes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.routing.label_selector import SelectorInvalid, parse_selector

LABELS = {"app": "web", "tier": "gold", "empty": "", "example.com/zone": "a-1", "in": "x"}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("", True),
        ("  ", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web", True),
        (" app  ==  web ", True),
        ("app=api", False),
        ("app=we", False),
        ("missing=web", False),
        ("app!=api", True),
        ("app != web", False),
        ("missing!=web", True),
        ("empty=", True),
        ("app=", False),
        ("missing=", False),
        ("app in (web)", True),
        ("app in (api, web)", True),
        ("app in(api,web)", True),
        ("app in (api)", False),
        ("missing in (web)", False),
        ("empty in (,x)", True),
        ("app notin (api)", True),
        ("app notin (api,web)", False),
        ("missing notin (web)", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("! missing", True),
        ("!app", False),
        ("example.com/zone=a-1", True),
        ("in in (x)", True),
        ("in", True),
        ("app=web,tier=gold", True),
        ("app=web , tier in (gold,silver),!canary", True),
        ("app=web,tier=silver", False),
        ("app=api,tier=gold", False),
        ("empty=,app=web", True),
    ],
)
def test_a_selector_selects_by_all_of_its_requirements(selector: str, selected: bool) -> None:
    assert parse_selector(selector).matches(LABELS) is selected


@pytest.mark.parametrize(
    "selector",
    [
        ",",
        "app=web,",
        ",app=web",
        "app=web,,tier=gold",
        "app=web tier=gold",
        "app in web",
        "app in (web",
        "app in (a b)",
        "app in (web) tier",
        "app notin web)",
        "app within (web)",
        "app>1",
        "app=web=api",
        "app=(web)",
        "!",
        "!app=web",
        "!!app",
        "=web",
        "app=wéb",
        "äpp=web",
        "app='web'",
        "app=web\napi=x",
        "a=b" * 5000,
    ],
)
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(SelectorInvalid):
        parse_selector(selector)


def test_an_error_shows_a_short_part_of_the_text() -> None:
    with pytest.raises(SelectorInvalid, match=r"from 'tier ~ x+' on") as caught:
        parse_selector("app=web,tier ~ " + "x" * 500)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("part", [" ", "a", "a ", "!", "a in (", "(", ",", "a=", "=", "a in (a,"])
def test_no_text_takes_long(part: str) -> None:
    """The text comes from clients: a pattern that tries all ways to fail would hang here."""
    with pytest.raises(SelectorInvalid):
        parse_selector((part * 4096)[:4095] + "~")


_NAMES = st.sampled_from(["a", "b", "x.y/c", "in", "notin"])
_VALUES = st.sampled_from(["", "1", "2", "in"])
_REQUIREMENTS = st.tuples(
    _NAMES,
    st.sampled_from(["=", "==", "!=", "in", "notin", "exists", "absent"]),
    st.lists(_VALUES, min_size=1, max_size=3),
)


@given(st.lists(_REQUIREMENTS, max_size=4), st.dictionaries(_NAMES, _VALUES), st.data())
def test_any_selector_that_can_be_written_is_read_as_it_is_meant(
    requirements: list[tuple[str, str, list[str]]], labels: dict[str, str], data: st.DataObject
) -> None:
    def space() -> str:
        return data.draw(st.sampled_from(["", " ", "  "]))

    def write(name: str, operator: str, values: list[str]) -> str:
        match operator:
            case "exists":
                return name
            case "absent":
                return f"!{space()}{name}"
            case "in" | "notin":
                inner = ",".join(f"{space()}{value}{space()}" for value in values)
                return f"{name} {operator}{space()}({inner})"
            case _:
                return f"{name}{space()}{operator}{space()}{values[0]}"

    def holds(name: str, operator: str, values: list[str]) -> bool:
        value = labels.get(name)
        match operator:
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value in values
            case "notin":
                return value not in values
            case "!=":
                return value != values[0]
            case _:
                return value == values[0]

    text = ",".join(f"{space()}{write(*each)}{space()}" for each in requirements)
    assert parse_selector(text).matches(labels) is all(holds(*each) for each in requirements)


def test_there_is_a_limit_of_requirements() -> None:
    assert len(parse_selector(",".join(["a"] * 16)).requirements) == 16
    with pytest.raises(SelectorInvalid, match="at most 16"):
        parse_selector(",".join(["a"] * 17))
