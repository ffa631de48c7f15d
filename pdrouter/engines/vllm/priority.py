"""vLLM's `priority`: with `--scheduling-policy priority`, the lowest goes first.

Without that flag, some releases answer 400 to any other than 0 ("Got priority 7 but Priority
scheduling is not enabled."), others ignore it (0.10 does). No metric tells which flag an engine
has. The header `x-vllm-priority` goes before the member.
"""

MEMBER = "priority"
PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/inference/v1/generate"}
)
"""Paths whose requests have such a member."""

STATUSES = frozenset({400, 422})
"""What an engine answers to a request that it refuses for its priority."""


def is_refusal(status: int, message: str) -> bool:
    """Return whether an engine refuses a request for its priority.

    Args:
        status: HTTP status of its answer.
        message: what that says.
    """
    return status in STATUSES and MEMBER in message.lower()
