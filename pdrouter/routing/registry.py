"""Strategies and policies by the names that users give them."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pdrouter.routing.decision import Strategy
from pdrouter.routing.kv_capacity import KVCapacity
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.policy import DecodePolicy, PrefillPolicy
from pdrouter.routing.single_pod import SinglePod
from pdrouter.routing.ttft import TimeToFirstToken

STRATEGY_NAMES = ("pd", "random", "least-request")
"""Values of `ROUTING_ALGORITHM` and of the `routing-strategy` header."""

PREFILL_POLICIES: Mapping[str, Callable[[Sequence[int]], PrefillPolicy]] = MappingProxyType(
    {"ttft": TimeToFirstToken}
)
DECODE_POLICIES: Mapping[str, Callable[[], DecodePolicy]] = MappingProxyType(
    {"kv_capacity": KVCapacity}
)


def create_strategies(
    prefill_policy: str = "ttft", decode_policy: str = "kv_capacity", buckets: Sequence[int] = ()
) -> Mapping[str, Strategy]:
    """Return the strategies by name.

    Args:
        prefill_policy: how `pd` scores prefill pods.
        decode_policy: how `pd` scores decode pods.
        buckets: prompt lengths of engines of static shapes, ascending.
    """
    strategies: Sequence[Strategy] = (
        PrefillDecode(PREFILL_POLICIES[prefill_policy](buckets), DECODE_POLICIES[decode_policy]()),
        SinglePod("random", by_load=False),
        SinglePod("least-request", by_load=True),
    )
    return MappingProxyType({strategy.name: strategy for strategy in strategies})
