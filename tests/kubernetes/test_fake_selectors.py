"""Which objects the fake server's selectors select."""

import pytest
from fakekube import ApiError
from fakekube.selectors import parse_field_selector, parse_label_selector

LABELS = {"role-name": "prefill", "model.aibrix.ai/name": "llama", "empty": ""}
FIELDS = {"metadata.name": "pod-0", "status.phase": "Running", "spec.nodeName": ""}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("", True),
        ("role-name=prefill", True),
        ("role-name==prefill", True),
        ("role-name=decode", False),
        ("role-name!=decode", True),
        ("role-name!=prefill", False),
        ("absent!=anything", True),
        ("absent=", False),
        ("empty=", True),
        ("role-name in (prefill,decode)", True),
        ("role-name in (decode)", False),
        ("role-name in ( decode , prefill )", True),
        ("role-name notin (decode, other)", True),
        ("role-name notin (prefill)", False),
        ("absent notin (a)", True),
        ("role-name", True),
        ("absent", False),
        ("!absent", True),
        ("! role-name", False),
        ("role-name in (a,prefill),model.aibrix.ai/name=llama,!absent", True),
        ("role-name in (a,prefill),model.aibrix.ai/name!=llama", False),
        (" role-name = prefill , empty ", True),
    ],
)
def test_a_label_selector_selects_by_equality_set_and_existence(
    selector: str, selected: bool
) -> None:
    assert parse_label_selector(selector)(LABELS) is selected


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("", True),
        ("metadata.name=pod-0", True),
        ("metadata.name=pod-1", False),
        ("status.phase!=Failed,metadata.name==pod-0", True),
        ("spec.nodeName=", True),
        ("spec.nodeName!=", False),
        ("status.podIP=", True),
    ],
)
def test_a_field_selector_selects_by_equality(selector: str, selected: bool) -> None:
    assert parse_field_selector(selector)(FIELDS) is selected


@pytest.mark.parametrize("selector", ["a in prefill", "a=b=c", "a in (b", "=b", ",", "a b"])
def test_a_label_selector_that_cannot_be_parsed_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_label_selector(selector)
    assert refused.value.code == 400


@pytest.mark.parametrize("selector", ["spec.hostname=a", "metadata.name in (a)", "metadata.name"])
def test_a_field_that_cannot_be_selected_by_is_a_bad_request(selector: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_field_selector(selector)
    assert refused.value.code == 400
