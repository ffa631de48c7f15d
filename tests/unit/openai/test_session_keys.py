"""What names the session of a request."""

import base64
import json
from typing import Any

import pytest
from factories import MODEL, make_request

from pdrouter.openai.sessions import Session, read_session, write_session_id
from pdrouter.settings.sessions import SESSION_KEYS

CHAT = "/v1/chat/completions"
NAMED = write_session_id("10.0.0.1:8000")


def read(headers: dict[str, str] | None = None, path: str = CHAT, **members: Any) -> Session | None:
    return read_session(make_request(path, **members), headers or {}, SESSION_KEYS)


@pytest.mark.parametrize(
    ("headers", "members", "session"),
    [
        ({}, {}, None),
        ({"x-session-id": "s-1"}, {}, Session("s-1", "x-session-id")),
        ({"x-aibrix-session-key": "k"}, {}, Session("k", "x-aibrix-session-key")),
        ({"x-correlation-id": "c"}, {}, Session("c", "x-correlation-id")),
        ({"x-session-affinity": "a"}, {}, Session("a", "x-session-affinity")),
        ({"x-multi-turn-session-id": "m"}, {}, Session("m", "x-multi-turn-session-id")),
        ({"x-claude-code-session-id": "cc"}, {}, Session("cc", "x-claude-code-session-id")),
        ({}, {"prompt_cache_key": "p"}, Session("p", "body.prompt_cache_key")),
        ({}, {"session_id": "v"}, Session("v", "body.session_id")),
        ({}, {"user": "u"}, Session("u", "body.user")),
        ({}, {"user": 17}, Session("17", "body.user")),
        ({}, {"metadata": {"user_id": "claude"}}, Session("claude", "body.metadata.user_id")),
        (
            {},
            {"conversation_params": {"conversation_id": "t"}},
            Session("t", "body.conversation_params.conversation_id"),
        ),
        # The first that is said counts, in this order.
        ({"x-session-id": "s", "x-aibrix-session-key": "k"}, {}, Session("s", "x-session-id")),
        ({"x-aibrix-session-key": "k"}, {"user": "u"}, Session("k", "x-aibrix-session-key")),
        ({"x-correlation-id": "c"}, {"user": "u"}, Session("c", "x-correlation-id")),
        (
            {"x-correlation-id": "c"},
            {"prompt_cache_key": "p"},
            Session("p", "body.prompt_cache_key"),
        ),
        # What says nothing is passed over.
        ({"x-session-id": " "}, {"user": "u"}, Session("u", "body.user")),
        ({"x-session-id": "s, s"}, {}, Session("s", "x-session-id")),
        ({}, {"user": ""}, None),
        ({}, {"user": None, "prompt_cache_key": None}, None),
        ({}, {"user": ["u"]}, None),
        ({}, {"user": True}, None),
        ({}, {"user": 1.5}, None),
        ({}, {"metadata": "x"}, None),
        ({}, {"metadata": {"user_id": {"id": "x"}}}, None),
        ({}, {"conversation_params": {}}, None),
    ],
)
def test_what_names_a_session(
    headers: dict[str, str], members: dict[str, Any], session: Session | None
) -> None:
    assert read(headers, **members) == session


def test_a_client_may_name_the_pod_that_has_served_it_as_in_aibrix() -> None:
    assert base64.b64encode(b"10.0.0.1:8000").decode() == NAMED
    assert read({"x-session-id": NAMED}) == Session(NAMED, "x-session-id", "10.0.0.1:8000")
    ipv6 = write_session_id("[fd00::1]:8000")
    assert read({"x-session-id": ipv6}) == Session(ipv6, "x-session-id", "[fd00::1]:8000")


def test_should_the_pod_be_gone_the_key_counts() -> None:
    headers = {"x-session-id": NAMED, "x-aibrix-session-key": "k"}
    assert read(headers) == Session("k", "x-aibrix-session-key", "10.0.0.1:8000")


@pytest.mark.parametrize(
    "text",
    [
        "not base64",
        base64.b64encode(b"10.0.0.1").decode(),
        base64.b64encode(b":8000").decode(),
        base64.b64encode(b"10.0.0.1:http").decode(),
        base64.b64encode(b"\xff:8000").decode(),
        base64.b64encode(b"1" * 200 + b":80").decode(),
        NAMED.rstrip("="),
    ],
)
def test_what_is_no_address_is_a_key(text: str) -> None:
    session = read({"x-session-id": text})
    assert session is not None
    assert session.address == ""


def test_a_long_key_is_a_key_of_its_own() -> None:
    """It is not cut: two that begin alike are two sessions."""
    one, other = (read({"x-aibrix-session-key": "k" * 256 + end}) for end in "ab")
    assert one is not None
    assert other is not None
    assert one.key != other.key
    assert len(one.key) == len(other.key) == 64
    assert read({"x-aibrix-session-key": "k" * 256}) == Session("k" * 256, "x-aibrix-session-key")


@pytest.mark.parametrize("value", ["u" * 20_000, {"id": "u", "more": "x" * 20_000}])
def test_what_nobody_has_reason_to_send_is_not_looked_into(value: object) -> None:
    assert read(user=value) is None
    assert read(metadata={"user_id": "u", "more": "x" * 20_000}) is None


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
def test_a_conversation_is_bound_to_one_pod(conversation: object) -> None:
    session = read({"x-session-id": "s"}, "/v1/responses", conversation=conversation)
    assert session == Session("conv_1", "body.conversation", bound=True)


def test_a_conversation_of_a_chat_is_a_session_like_others() -> None:
    assert read(conversation="conv_1") == Session("conv_1", "body.conversation")


def test_the_operator_says_what_names_a_session() -> None:
    data = json.dumps({"model": MODEL, "messages": [{"role": "user"}], "user": "u"}).encode()
    request = make_request(CHAT, data)
    assert read_session(request, {"x-session-id": "s"}, ("body.user",)) == Session("u", "body.user")
    assert read_session(request, {"x-chat": "c"}, ("x-chat",)) == Session("c", "x-chat")
    # Only x-session-id may name a pod.
    assert read_session(request, {"x-chat": NAMED}, ("x-chat",)) == Session(NAMED, "x-chat")
