"""Every error of the router's, in the envelope that the clients of its path understand."""

import json
from typing import Any

import pytest
from exchanges import BUFFERED, CHAT, DECODE, Bench, request_body, request_headers

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.extproc.messages import BodyMode, Event, ImmediateReply, ProtocolConfig
from pdrouter.settings.choices import FailurePolicy

MESSAGES = "/v1/messages"
STREAMED = ProtocolConfig(BodyMode.STREAMED, BodyMode.NONE, False)


def head(path: str = MESSAGES, method: str = "POST", **headers: Any) -> Event:
    return request_headers(path, method, **headers)


def broken() -> EngineAnswer:
    raise ZeroDivisionError


ERRORS: dict[str, tuple[dict[str, Any], Any, list[Event], int, str]] = {
    "no key": ({"bearer_token": "k"}, None, [head()], 401, "authentication_error"),
    "no such path": ({}, None, [head(MESSAGES + "/")], 404, "not_found_error"),
    "method": ({}, None, [head(method="GET")], 405, "invalid_request_error"),
    "encoding": ({}, None, [head(content_encoding="gzip")], 415, "invalid_request_error"),
    "no body": ({}, None, [head(end_of_stream=True)], 400, "invalid_request_error"),
    "modes": ({}, None, [head(config=STREAMED)], 500, "api_error"),
    "order": ({}, None, [head(), head()], 500, "api_error"),
    "large": ({"max_body_bytes": 2}, None, [head(), request_body()], 413, "request_too_large"),
    "JSON": ({}, None, [head(), request_body(b"{")], 400, "invalid_request_error"),
    "model": ({}, None, [head(), request_body(CHAT | {"model": "x"})], 404, "not_found_error"),
    "no pod": ({"pods": [DECODE]}, None, [head(), request_body()], 503, "overloaded_error"),
    "connect": ({}, FailureKind.CONNECT, [head(), request_body()], 502, "api_error"),
    "timeout": ({}, FailureKind.TIMEOUT, [head(), request_body()], 504, "timeout_error"),
    "handle": (
        {"on_handoff_failure": FailurePolicy.FAIL},
        EngineAnswer(200, {}, b"{}"),
        [head(), request_body()],
        502,
        "api_error",
    ),
    "bug": ({}, broken, [head(), request_body()], 500, "api_error"),
    "below": ({}, None, [head(MESSAGES + "/count_tokens", "PUT")], 405, "invalid_request_error"),
}


@pytest.mark.parametrize(
    ("options", "prefill", "events", "status", "error_type"), ERRORS.values(), ids=ERRORS
)
async def test_errors_on_anthropics_paths_are_anthropics(
    options: dict[str, Any], prefill: Any, events: list[Event], status: int, error_type: str
) -> None:
    bench = Bench(**options)
    if prefill is not None:
        bench.prefill.answer = prefill if callable(prefill) else lambda: prefill
    *_, reply = await bench.tell(*events)
    assert isinstance(reply, ImmediateReply)
    request_id = bench.exchange.record.request_id
    body = json.loads(reply.body)
    message = body["error"].pop("message")
    assert message
    assert body == {"type": "error", "error": {"type": error_type}, "request_id": request_id}
    assert reply.status == status
    headers = dict(reply.headers)
    # The SDK reads the latter.
    assert headers["x-request-id"] == headers["request-id"] == request_id
    assert headers["content-type"] == "application/json"
    bench.close()


async def test_elsewhere_they_are_openais() -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(method="GET", config=BUFFERED))
    assert isinstance(reply, ImmediateReply)
    assert json.loads(reply.body)["error"]["code"] == "method_not_allowed"
    assert "request-id" not in dict(reply.headers)
    bench.close()


async def test_an_engines_own_error_stays_as_it_is() -> None:
    bench = Bench()
    bench.prefill.answer = lambda: EngineAnswer(422, {}, b'{"object": "error"}')
    *_, reply = await bench.tell(head(), request_body())
    assert isinstance(reply, ImmediateReply)
    assert reply.body == b'{"object": "error"}'
    bench.close()
