"""Errors of the router's own, for what stands in a request's way."""

from collections.abc import Mapping
from math import ceil
from types import MappingProxyType

from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import PEER_CHANGED, HandoffInvalid, Leg
from pdrouter.openai.errors import RequestRejected
from pdrouter.routing.admission import DeadlineMissed, QueueTooLong
from pdrouter.routing.decision import NoReadyPod
from pdrouter.serving.leg_outcome import Attempt, LegFailed
from pdrouter.users.counters import Measure, Quota, Verdict
from pdrouter.users.quotas import MINUTE_S, SECOND_S

DEADLINE_MISSED = "deadline_missed"
"""Code of the error for a request whose first token could not come when it is due."""

RETRY_AFTER_S = 5
"""Seconds after which a client may find a ready pod, or one that is less busy."""

_AT_ONCE_S = 1
"""Seconds after which a client may try what the router could not try again for it."""

RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
"""Code of the error for a request that a limit has no room for."""
_UNITS: Mapping[float, str] = MappingProxyType({MINUTE_S: "per minute", SECOND_S: "per second"})

_ROUNDING_S = 0.001
_LONGEST_S = 60
"""SDKs take no longer wait for what it says; what is a second longer may be told so then."""

_TOLD_ATTEMPTS = 3
_TOLD_REASONS = 3
_WAYS_OUT: Mapping[str, str] = MappingProxyType(
    {
        "stateful-responses": '"store": false lets it be split, '
        "without background, previous_response_id and conversation"
    }
)
"""What a client may do about a reason for which requests are not split."""
_ENCODE = ("encode_failed", "encode_timeout", "encode_unavailable")
_PREFILL = ("prefill_failed", "prefill_timeout", "prefill_unavailable")
_CAUSES: Mapping[FailureKind | None, str] = MappingProxyType(
    {
        FailureKind.CONNECT: "cannot be connected to",
        FailureKind.TRANSPORT: "broke the connection off before its answer was complete",
        FailureKind.TIMEOUT: "did not answer in time",
        FailureKind.TOO_LARGE: "gave an answer larger than the message limit",
    }
)


def refuse_for_now(
    status: int, code: str, message: str, seconds: int = RETRY_AFTER_S
) -> RequestRejected:
    """Return an error that says when to come again."""
    headers = (("retry-after", str(seconds)),)
    return RequestRejected(status, code, message, headers=headers)


def refuse_limits_unknown() -> RequestRejected:
    """Return the error for a request of which it cannot be found out whether it may pass."""
    message = "the limits of users cannot be checked at the moment"
    return refuse_for_now(503, "limits_unavailable", message, _AT_ONCE_S)


def refuse_over_limit(verdict: Verdict) -> RequestRejected:
    """Return the error for a request that its limits have no room for."""
    demand = verdict.refused
    if demand is None:
        raise ValueError("nothing was refused")
    quota = demand.quota
    limit = f"{quota.scope} may have {quota.limit} {_name_measure(quota)}"
    if demand.amount > quota.limit:
        if quota.measure is Measure.TOKENS:
            limit += f"; this request alone needs about {demand.amount}"
        # The SDKs know this header: to try again would be in vain.
        headers = (("x-should-retry", "false"),)
        return RequestRejected(429, RATE_LIMIT_EXCEEDED, f"{limit}", headers=headers)
    if quota.measure is Measure.TOKENS:
        left = next(each.remaining for each in verdict.standings if each.quota == quota)
        limit += f"; {left} are left, and this request needs about {demand.amount}"
    seconds = min(max(_AT_ONCE_S, ceil(verdict.wait_s - _ROUNDING_S)), _LONGEST_S)
    message = f"{limit}; try again in {seconds} s"
    return refuse_for_now(429, RATE_LIMIT_EXCEEDED, message, seconds)


def _name_measure(quota: Quota) -> str:
    if quota.measure is Measure.CONCURRENT:
        return "requests at a time"
    unit = _UNITS.get(quota.window_s) or f"in {quota.window_s:g} s"
    return f"{quota.measure} {unit}"


def refuse_handle(invalid: HandoffInvalid) -> RequestRejected:
    """Return the error for a request whose handle is of no use, and that is not served whole."""
    message = f"the prefill leg gave no KV handle that can be used: {invalid}"
    if invalid.reason == "late":
        return refuse_for_now(503, "handoff_late", message)
    if invalid.reason == PEER_CHANGED:
        return refuse_for_now(503, "prefill_changed", message, _AT_ONCE_S)
    return RequestRejected(502, "handoff_invalid", message)


def refuse_encoded(invalid: HandoffInvalid) -> RequestRejected:
    """Return the error for a request whose media were encoded to nothing that can be used."""
    message = f"the encode leg gave nothing that can be used: {invalid}"
    return RequestRejected(502, "encode_invalid", message)


def refuse_too_large() -> RequestRejected:
    """Return the error for a request that Envoy would refuse, as if its body were too large."""
    message = "with what the engine needs to know, the body is too large"
    return RequestRejected(413, "body_too_large", message)


def refuse_reused() -> RequestRejected:
    """Return the error for an answer that may be of another prompt: engines do not tell."""
    message = (
        "the gateway has sent the KV handle more than once, so that the answer cannot be trusted: "
        "its retry policy must hold for connect-failure and refused-stream only"
    )
    return RequestRejected(502, "handle_reused", message)


def describe_failure(failed: LegFailed, *, expose_pods: bool) -> RequestRejected:
    """Return the error for a request of which no pod has carried out a side leg.

    Args:
        failed: what was tried, the last ones of which are told.
        expose_pods: whether the client is told names and addresses of pods.
    """
    attempts, last, leg = failed.attempts, failed.attempts[-1], failed.leg
    failed_code, timeout_code, unavailable_code = _ENCODE if leg is Leg.ENCODE else _PREFILL
    causes = [_describe_attempt(attempt, expose_pods) for attempt in attempts[-_TOLD_ATTEMPTS:]]
    message = (
        f"the {leg} leg failed after {len(attempts)} attempt(s): {last.failure}; "
        + "; ".join(causes)
    )
    if failed.over_budget:
        message += "; no other pod was tried, since too many of the model's requests are"
    if failed.committed:
        message += "; the other legs had begun, so that no other pod could be tried"
        return refuse_for_now(503, failed_code, message, _find_wait(failed) or _AT_ONCE_S)
    if last.failure is FailureKind.TIMEOUT:
        return RequestRejected(504, timeout_code, message)
    if last.status == 503:
        seconds = _find_wait(failed) or RETRY_AFTER_S
        return refuse_for_now(503, unavailable_code, message, seconds)
    return RequestRejected(502, failed_code, message)


def _find_wait(failed: LegFailed) -> int | None:
    """Return after how many seconds the first engine wants to be asked again, if one says so."""
    asked = [each.retry_after_s for each in failed.attempts if each.retry_after_s is not None]
    return max(1, ceil(min(asked))) if asked else None


def _describe_attempt(attempt: Attempt, expose_pods: bool) -> str:
    pod = attempt.pod
    name = f"pod {pod.name} ({pod.address})" if expose_pods else "a pod"
    # What a failed connection says of itself has the address in it. An engine's words have not.
    if attempt.status is not None and attempt.failure in (None, FailureKind.STATUS):
        return f"{name}: {attempt.message}"
    return f"{name} {_CAUSES.get(attempt.failure, 'failed')}"


def refuse_queue(queue: QueueTooLong) -> RequestRejected:
    """Return the error for a request whose pods would be busy with others for too long."""
    message = f"{queue}, and may be {queue.limit_s:g} s"
    return refuse_for_now(429, "overloaded", message, ceil(queue.wait_s - queue.limit_s))


def refuse_late(missed: DeadlineMissed) -> RequestRejected:
    """Return the error for a request whose first token would come too late."""
    return refuse_for_now(429, DEADLINE_MISSED, str(missed), max(1, ceil(missed.late_s)))


def refuse_missing(
    missing: NoReadyPod, pods: ModelPods, whole: str | None = None
) -> RequestRejected:
    """Return the error for a request that lacks a pod, with what may never be one.

    Args:
        missing: what it lacks.
        pods: the pods of its model.
        whole: why it cannot be split; None if it can.
    """
    split_only = [pod.engine for pod in pods.pods if pod.ready and not pod.serves_whole]
    if whole is not None and split_only and not pods.whole:
        message = f"decode engines of {split_only[0]} serve no request whole, as this one needs"
        reason = f"{whole} ({_WAYS_OUT[whole]})" if whole in _WAYS_OUT else whole
        return RequestRejected(400, "cannot_be_split", f"{message}: {reason}")
    reasons = sorted({pod.unsupported for pod in pods.pods if pod.unsupported})
    return refuse_for_now(503, "no_ready_pod", "; ".join([str(missing), *reasons[:_TOLD_REASONS]]))
