"""What the head of an answer says of the pod that Envoy has sent the last leg to."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from pdrouter.load.failures import CONNECT
from pdrouter.openai.retry_after import read_retry_after
from pdrouter.serving.statuses import BUSY

ATTEMPTS = "upstream.request_attempt_count"
"""Attribute that says how often Envoy has tried to send a request."""

RESPONSE_ATTRIBUTES = ("upstream.address", "response.code_details", ATTEMPTS)
"""Attributes that Envoy is to send with the head of an answer: which pod answered, or why none, and
at which try."""

_FROM_ENGINE = "via_upstream"
_NO_ANSWER = "upstream_reset_before_response_started{"
_NEVER_CONNECTED = (
    "connection_failure",
    "local_connection_failure",
    "remote_connection_failure",
    "connection_timeout",
    "overflow",
)
_NOT_THE_PODS = ("overflow", "local_reset", "overload_manager")
_TIMEOUTS = (
    "upstream_response_timeout",
    "response_timeout",
    "upstream_per_try_timeout",
    "upstream_per_try_idle_timeout",
    "stream_idle_timeout",
)
# Engines' web frameworks send the first two, Envoy adds the third. When ext_proc sees an answer of
# Envoy's own, it has none of them yet.
_ENGINE_HEADERS = ("date", "server", "x-envoy-upstream-service-time")
_FIRST_ERROR = 400
_NOT_IMPLEMENTED = 501
_UNAVAILABLE = 503
_GATEWAY_TIMEOUT = 504


class Verdict(StrEnum):
    """What an answer says of the pod."""

    ANSWERED = "answered"
    """It serves."""
    FAILED = "failed"
    """It has failed."""
    TIMED_OUT = "timed-out"
    """It has not answered in time."""
    LACKING = "lacking"
    """It does not have the key, the model or the adapter, if another pod has."""
    NOTHING = "nothing"
    """Nothing: the request has not come to it."""


class Judgement(msgspec.Struct, frozen=True):
    """What is made of an answer's head.

    Attributes:
        verdict: what it says of the pod.
        from_engine: whether an engine has answered; False for Envoy itself.
        cause: what went wrong, in a word of a bounded set.
        retry_after_s: seconds after which the engine wants to be asked again; None if it has not
            said so.
    """

    verdict: Verdict
    from_engine: bool
    cause: str = ""
    retry_after_s: float | None = None


_GOOD = Judgement(Verdict.ANSWERED, True)


def is_unseen(attributes: Mapping[str, Any]) -> bool:
    """Return whether it is certain that no engine has got any of a request.

    Envoy has made no attempt to send it, or a single one, whose connection was never there. A retry
    policy may have made another attempt before, of which nothing is known.

    Args:
        attributes: Envoy's attributes of the answer.
    """
    attempts = attributes.get(ATTEMPTS)
    if attempts == 0:
        return True
    details = attributes.get("response.code_details")
    if attempts != 1 or not isinstance(details, str) or not details.startswith(_NO_ANSWER):
        return False
    reason, _, _ = details.removeprefix(_NO_ANSWER).rstrip("}").partition("|")
    return reason in _NEVER_CONNECTED


def judge_answer(
    status: int, headers: Mapping[str, str], attributes: Mapping[str, Any]
) -> Judgement:
    """Judge an answer by its head.

    Args:
        status: HTTP status.
        headers: the answer's headers.
        attributes: Envoy's attributes of the answer. Without `response.code_details`, headers tell
            whether an engine has answered.
    """
    details = attributes.get("response.code_details")
    if details == _FROM_ENGINE:
        return _GOOD if status < _FIRST_ERROR else _judge_refusal(status, headers)
    if not isinstance(details, str) or not details:
        if status < _FIRST_ERROR:
            return _GOOD  # Good ones are an engine's.
        if any(name in headers for name in _ENGINE_HEADERS):
            return _judge_refusal(status, headers)
        return _judge_unexplained(status)
    if details in _TIMEOUTS:
        return Judgement(Verdict.TIMED_OUT, False, "timeout")
    if details.startswith(_NO_ANSWER):
        reason = details.removeprefix(_NO_ANSWER)
        if reason.startswith(_NOT_THE_PODS):
            return Judgement(Verdict.NOTHING, False)
        connecting = "connection_failure" in reason or "connection_timeout" in reason
        return Judgement(Verdict.FAILED, False, CONNECT if connecting else "transport")
    return Judgement(Verdict.NOTHING, False)


def _judge_refusal(status: int, headers: Mapping[str, str]) -> Judgement:
    """Judge an error that an engine has answered with."""
    retry_after, cause = read_retry_after(headers), f"status-{status}"
    if status in BUSY or (status >= 500 and status != _NOT_IMPLEMENTED):
        return Judgement(Verdict.FAILED, True, cause, retry_after)
    if status in (401, 403, 404):
        return Judgement(Verdict.LACKING, True, cause)
    return Judgement(Verdict.ANSWERED, True)


def _judge_unexplained(status: int) -> Judgement:
    """Judge an error that does not say whose it is."""
    if status == _GATEWAY_TIMEOUT:
        return Judgement(Verdict.TIMED_OUT, False, "timeout")
    if status == _UNAVAILABLE:
        return Judgement(Verdict.FAILED, False, CONNECT)
    return Judgement(Verdict.NOTHING, False)
