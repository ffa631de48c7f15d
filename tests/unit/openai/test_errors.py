"""Errors in their envelopes, and the list of models."""

import json

import pytest

from pdrouter.openai.errors import RequestRejected, encode_anthropic_error, encode_error
from pdrouter.openai.models import encode_model, encode_models


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (405, "invalid_request_error"),
        (413, "invalid_request_error"),
        (415, "invalid_request_error"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "api_error"),
    ],
)
def test_the_type_of_an_error_follows_from_its_status(status: int, error_type: str) -> None:
    assert json.loads(encode_error(status, "some_code", "what", "model")) == {
        "error": {"message": "what", "type": error_type, "param": "model", "code": "some_code"}
    }


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (431, "invalid_request_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropic_has_other_types(status: int, error_type: str) -> None:
    assert json.loads(encode_anthropic_error(status, "what", "id")) == {
        "type": "error",
        "error": {"type": error_type, "message": "what"},
        "request_id": "id",
    }


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        ("/v1/messages", True),
        ("/v1/messages/", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches", True),
        ("/v1/messages2", False),
        ("/v1/chat/completions", False),
        ("/v1/threads/t/messages", False),
        ("", False),
    ],
)
def test_the_path_says_which_dialect_an_error_has(path: str, anthropic: bool) -> None:
    rejected = RequestRejected(400, "invalid_value", "what", "model")
    expected = (
        encode_anthropic_error(400, "what", "id")
        if anthropic
        else encode_error(400, "invalid_value", "what", "model")
    )
    assert rejected.body(path, "id") == expected


def test_all_members_are_there_even_if_null() -> None:
    assert json.loads(encode_error(500, None, "")) == {
        "error": {"message": "", "type": "api_error", "param": None, "code": None}
    }


def test_a_rejection_knows_its_answer() -> None:
    rejected = RequestRejected(503, "no_ready_pod", "none", headers=(("retry-after", "5"),))
    assert str(rejected) == "none"
    assert rejected.headers == (("retry-after", "5"),)
    assert rejected.param is None
    assert rejected.body() == encode_error(503, "no_ready_pod", "none")


def test_messages_may_hold_what_a_client_sent() -> None:
    message = 'quotes " and \\, line\nbreaks, \x00, é'
    assert json.loads(encode_error(400, "c", message))["error"]["message"] == message


def test_models_are_listed_in_order() -> None:
    cards = json.loads(encode_models(["b", "a", "ä"]))
    assert cards["object"] == "list"
    assert [card["id"] for card in cards["data"]] == ["a", "b", "ä"]
    assert json.loads(encode_model("a")) == cards["data"][0]
    assert cards["data"][0] == {"id": "a", "object": "model", "created": 0, "owned_by": "pdrouter"}


def test_there_may_be_no_models() -> None:
    assert json.loads(encode_models([])) == {"object": "list", "data": []}
