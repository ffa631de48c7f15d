"""Strategies and policies by the names that users give them."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pdrouter.routing.aibrix import decode, prefill
from pdrouter.routing.aibrix.decode import AibrixDecode
from pdrouter.routing.aibrix.prefill import AibrixPrefill
from pdrouter.routing.combination import CombinedDecode, CombinedPrefill, PolicyBook
from pdrouter.routing.decision import Strategy
from pdrouter.routing.kv_capacity import KVCapacity
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.policy import DEFAULT_OPTIONS, DecodePolicy, PolicyOptions, PrefillPolicy
from pdrouter.routing.single_pod import SinglePod
from pdrouter.routing.ttft import TimeToFirstToken


def _take_prefill(name: str, formula: prefill.Formula) -> Callable[[PolicyOptions], PrefillPolicy]:
    return lambda options: AibrixPrefill(name, formula, options)


def _take_decode(name: str, formula: decode.Formula) -> Callable[[PolicyOptions], DecodePolicy]:
    return lambda options: AibrixDecode(name, formula, options)


PREFILL_POLICIES: Mapping[str, Callable[[PolicyOptions], PrefillPolicy]] = MappingProxyType(
    {
        "ttft": TimeToFirstToken,
        "prefix_cache": _take_prefill("prefix_cache", prefill.score_by_prefix),
        "least_request": _take_prefill("least_request", prefill.score_by_requests),
        "conductor": _take_prefill("conductor", prefill.score_by_time),
    }
)
"""`PREFILL_POLICY_NAMES` of the settings, each with what makes it."""

DECODE_POLICIES: Mapping[str, Callable[[PolicyOptions], DecodePolicy]] = MappingProxyType(
    {
        "kv_capacity": lambda _: KVCapacity(),
        "load_balancing": _take_decode("load_balancing", decode.score_by_balance),
        "least_request": _take_decode("least_request", decode.score_by_requests),
        "conductor": _take_decode("conductor", decode.score_by_token_time),
    }
)
"""`DECODE_POLICY_NAMES` of the settings, each with what makes it."""


def create_strategies(
    prefill_policy: str = "ttft",
    decode_policy: str = "kv_capacity",
    options: PolicyOptions = DEFAULT_OPTIONS,
) -> Mapping[str, Strategy]:
    """Return the strategies by name.

    Args:
        prefill_policy: how `pd` scores prefill pods.
        decode_policy: how `pd` scores decode pods.
        options: what else the operator decided about `pd`.
    """
    strategies: Sequence[Strategy] = (
        PrefillDecode(
            PolicyBook(
                {name: create(options) for name, create in PREFILL_POLICIES.items()},
                prefill_policy,
                CombinedPrefill,
            ),
            PolicyBook(
                {name: create(options) for name, create in DECODE_POLICIES.items()},
                decode_policy,
                CombinedDecode,
            ),
            bucketing=options.bucketing,
            locality=options.locality_weight,
        ),
        SinglePod("random", by_load=False),
        SinglePod("least-request", by_load=True),
    )
    return MappingProxyType({strategy.name: strategy for strategy in strategies})
