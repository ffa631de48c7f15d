"""Errors of the router's own, for what stands in a request's way."""

from pdrouter.openai.errors import RequestRejected
from pdrouter.prefill.client import FailureKind
from pdrouter.prefill.leg import PrefillFailed

RETRY_AFTER_S = 5
"""Seconds after which a client may find a ready pod, or one that is less busy."""


def refuse_for_now(
    status: int, code: str, message: str, seconds: int = RETRY_AFTER_S
) -> RequestRejected:
    """Return an error that says when to come again."""
    headers = (("retry-after", str(seconds)),)
    return RequestRejected(status, code, message, headers=headers)


def describe_failure(failed: PrefillFailed) -> RequestRejected:
    """Return the error for a request whose prefill leg no pod has carried out."""
    last = failed.last
    # Addresses of pods are for the log.
    message = f"the prefill leg failed after {failed.attempts} attempt(s): {last.failure}"
    if last.failure is FailureKind.TIMEOUT:
        return RequestRejected(504, "prefill_timeout", message)
    if last.status == 503:
        return refuse_for_now(503, "prefill_unavailable", message)
    return RequestRejected(502, "prefill_failed", message)
