"""Ids of kept answers, the paths to them, and which requests have any."""

from typing import Any

import pytest
from factories import make_request
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.stored_responses import (
    create_response_id,
    is_kept,
    name_response,
    parse_stored_path,
    read_previous,
    read_tag,
    tag_holder,
)

RESPONSES = "/v1/responses"


@given(st.text(), st.text())
def test_an_id_tells_any_router_who_keeps_the_answer(holder: str, owner: str) -> None:
    response_id = create_response_id(holder, owner)
    assert read_tag(response_id, owner) == tag_holder(holder)
    assert parse_stored_path(f"{RESPONSES}/{response_id}", "GET") is not None


def test_no_two_ids_are_the_same_and_none_tells_the_pod() -> None:
    ids = {create_response_id("10.0.0.1:8000", "") for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 53 and each.startswith("resp_") for each in ids)
    assert not [each for each in ids if "10.0" in each or "8000" in each.split("_")[1][:12]]


@given(st.text(), st.text())
def test_an_id_is_worth_nothing_to_others(owner: str, other: str) -> None:
    response_id = create_response_id("uid", owner)
    assert read_tag(response_id, other) == ("" if other != owner else tag_holder("uid"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "resp_", "resp_1", "resp_" + "0" * 47, "resp_" + "g" * 48, "chatcmpl-1"),
        *("resp_" + "0" * 48 + "\n", " resp_" + "0" * 48, "resp_" + "0" * 49),
    ],
)
def test_what_no_router_has_made_tells_nothing(text: str) -> None:
    assert read_tag(text, "") is None


def test_a_changed_id_is_nobodys() -> None:
    response_id = create_response_id("uid", "")
    other_holder = "resp_" + tag_holder("other") + response_id.removeprefix("resp_")[12:]
    assert read_tag(other_holder, "") == ""


@pytest.mark.parametrize(
    ("path", "method", "methods"),
    [
        ("/v1/responses/resp_1", "GET", ("GET", "DELETE")),
        ("/v1/responses/resp_1", "POST", ("GET", "DELETE")),
        ("/v1/responses/resp_1/cancel", "POST", ("POST",)),
        ("/v1/responses/resp_1/input_items", "GET", ("GET",)),
        ("/v1/responses/foo", "GET", ("GET", "DELETE")),
        # These are no ids.
        ("/v1/responses/render", "POST", None),
        ("/v1/responses/compact", "POST", None),
        ("/v1/responses", "GET", None),
        ("/v1/responses/", "GET", None),
        ("/v1/responses/resp_1/", "GET", None),
        ("/v1/responses/resp_1/other", "GET", None),
        ("/v1/responses/resp_1/cancel/", "POST", None),
        ("/v1/responses/..", "GET", None),
        ("/v1/responses/resp_1/../x", "GET", None),
        ("/v1/responses/resp_1%2f..", "GET", None),
        ("/v1/responses/resp_1;x", "GET", None),
        ("/v1/responses/resp_é", "GET", None),
        ("/v1/responses/" + "r" * 257, "GET", None),
        ("//v1/responses/resp_1", "GET", None),
    ],
)
def test_paths_to_kept_answers(path: str, method: str, methods: tuple[str, ...] | None) -> None:
    found = parse_stored_path(path, method)
    assert (None if found is None else found.methods) == methods


@pytest.mark.parametrize(
    ("path", "members", "kept"),
    [
        (RESPONSES, {"store": ...}, True),
        (RESPONSES, {"store": True}, True),
        (RESPONSES, {"store": None}, True),
        (RESPONSES, {"store": "perhaps"}, True),
        (RESPONSES, {"store": False}, False),
        (RESPONSES, {"store": "false"}, False),
        (RESPONSES, {"store": False, "background": True}, True),
        (RESPONSES, {"store": False, "previous_response_id": "resp_1"}, False),
        ("/v1/chat/completions", {"store": True}, False),
    ],
)
def test_which_answers_engines_keep(path: str, members: dict[str, Any], *, kept: bool) -> None:
    assert is_kept(make_request(path, **members)) is kept


@pytest.mark.parametrize(
    ("path", "previous", "read"),
    [
        (RESPONSES, "resp_1", "resp_1"),
        (RESPONSES, None, ""),
        (RESPONSES, 7, ""),
        (RESPONSES, {"id": "x"}, ""),
        ("/v1/chat/completions", "resp_1", ""),
    ],
)
def test_what_a_request_goes_on_with(path: str, previous: object, read: str) -> None:
    assert read_previous(make_request(path, previous_response_id=previous)) == read


def test_the_id_replaces_what_the_client_wants_to_be_its() -> None:
    request = make_request(RESPONSES, request_id="resp_mine", store=True)
    named = name_response(request, "uid", "alice")
    body = bytes(named.edit({}, ()))
    assert b"resp_mine" not in body
    assert body.count(b'"request_id"') == 1
