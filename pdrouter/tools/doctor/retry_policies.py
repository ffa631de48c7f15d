"""Which of Envoy's retry policies would send a KV handle twice, wherever they stand."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

NEVER_ARRIVED = frozenset({"connect-failure", "refused-stream", "reset-before-request"})
"""What Envoy may retry after: the request has not come to an engine. After anything else (`5xx`,
`reset`, `gateway-error`, `retriable-status-codes`, ...) it may have."""

SAFE = "retry after connect-failure and refused-stream only, once"
"""What to do instead."""


def judge_conditions(conditions: Iterable[str]) -> str:
    """Return which of some conditions an engine may have seen the request before; or nothing."""
    return ", ".join(dict.fromkeys(name for name in conditions if name not in NEVER_ARRIVED))


def judge_policy(policy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a retry policy as Envoy has it: the member, and the problem."""
    if policy.get("num_retries") == 0:
        return
    seen = judge_conditions(split_conditions(policy.get("retry_on")))
    if seen:
        yield "retry_on", describe_seen(seen)
    if policy.get("per_try_timeout"):
        yield "per_try_timeout", describe_timeout(policy["per_try_timeout"])


def judge_hedging(policy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a hedge policy: the member, and the problem."""
    if policy.get("hedge_on_per_try_timeout"):
        yield "hedge_on_per_try_timeout", "a second request goes out while the first is under way"


def find_policies(
    value: Any,  # noqa: ANN401 - any part of a configuration
    path: str = "",
) -> Iterator[tuple[str, str]]:
    """Yield where a part of Envoy's configuration would have a handle sent twice, and how.

    Of routes, virtual hosts and clusters: those of filters are for what they ask themselves. All
    members are named as in protobuf.
    """
    if isinstance(value, list):
        for index, member in enumerate(value):
            yield from find_policies(member, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, member in value.items():
            if name in ("grpc_service", "http_service", "http_filters"):
                continue
            here = f"{path}.{name}" if path else str(name)
            if name in _JUDGES and isinstance(member, dict):
                for wrong, problem in _JUDGES[name](member):
                    yield f"{here}.{wrong}", problem
            elif name == "retry_on" and (seen := judge_conditions(split_conditions(member))):
                yield here, describe_seen(seen)
            else:
                yield from find_policies(member, here)


def split_conditions(text: object) -> list[str]:
    """Return the conditions of `retry_on`, each on its own."""
    return [name.strip() for name in str(text or "").split(",") if name.strip()]


def describe_seen(conditions: str) -> str:
    """Return what is wrong with conditions after which an engine may have seen the request."""
    return f"Envoy sends a request again after {conditions}: an engine may have fetched its blocks"


def describe_timeout(seconds: object) -> str:
    """Return what is wrong with a time limit for each try."""
    return f"a try ends after {seconds}, whatever its engine has begun with the blocks"


_JUDGES = {"retry_policy": judge_policy, "hedge_policy": judge_hedging}
