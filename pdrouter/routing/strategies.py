"""Strategies and policies by the names that users give them."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pdrouter.routing.aibrix import decode, prefill
from pdrouter.routing.aibrix.decode import AibrixDecode
from pdrouter.routing.aibrix.prefill import AibrixPrefill
from pdrouter.routing.algorithms.engine_numbers import (
    LEAST_GPU_CACHE,
    LEAST_KV_CACHE,
    LEAST_UTILIZATION,
    THROUGHPUT,
)
from pdrouter.routing.algorithms.latency import LeastLatency
from pdrouter.routing.algorithms.legs import AlgorithmDecode, AlgorithmPrefill
from pdrouter.routing.algorithms.preble import Preble, PrebleCost
from pdrouter.routing.algorithms.prefix_cache import PrefixCache, PrefixMatch
from pdrouter.routing.algorithms.requests import AnyPod, LeastBusyTime, LeastRequest, PowerOfTwo
from pdrouter.routing.algorithms.session import SessionAffinity, SessionMatch
from pdrouter.routing.algorithms.slo import LeastLoad, PackLoad
from pdrouter.routing.algorithms.vtc import VtcBasic
from pdrouter.routing.combination import CombinedDecode, CombinedPrefill, PolicyBook
from pdrouter.routing.decision import Strategy
from pdrouter.routing.kv_capacity import KVCapacity
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.policy import DEFAULT_OPTIONS, DecodePolicy, PolicyOptions, PrefillPolicy
from pdrouter.routing.scoring import Algorithm, Alone, Scorer
from pdrouter.routing.single_pod import SinglePod
from pdrouter.routing.strategy_book import StrategyBook
from pdrouter.routing.ttft import TimeToFirstToken
from pdrouter.settings.choices import (
    ALGORITHM_NAMES,
    DECODE_ALGORITHM_NAMES,
    PREFILL_ALGORITHM_NAMES,
)


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
"""`PREFILL_POLICY_NAMES` of the settings, each with what makes it, beside the algorithms."""

DECODE_POLICIES: Mapping[str, Callable[[PolicyOptions], DecodePolicy]] = MappingProxyType(
    {
        "kv_capacity": lambda _: KVCapacity(),
        "load_balancing": _take_decode("load_balancing", decode.score_by_balance),
        "least_request": _take_decode("least_request", decode.score_by_requests),
        "conductor": _take_decode("conductor", decode.score_by_token_time),
    }
)
"""`DECODE_POLICY_NAMES` of the settings, each with what makes it, beside the algorithms."""


SCORERS: Mapping[str, Callable[[PolicyOptions], Scorer]] = MappingProxyType(
    {
        "least-request": lambda _: LeastRequest(),
        "least-busy-time": lambda _: LeastBusyTime(),
        "least-gpu-cache": lambda _: LEAST_GPU_CACHE,
        "least-kv-cache": lambda _: LEAST_KV_CACHE,
        "least-utilization": lambda _: LEAST_UTILIZATION,
        "least-latency": lambda _: LeastLatency(),
        "throughput": lambda _: THROUGHPUT,
        "prefix-cache": lambda _: PrefixMatch(),
        "session-affinity": lambda _: SessionMatch(),
        "prefix-cache-preble": PrebleCost,
        "vtc-basic": VtcBasic,
    }
)
"""The algorithms that can be in lists, each with what makes its scorer."""

_ALONE: Mapping[str, Callable[[PolicyOptions], Algorithm]] = MappingProxyType(
    {
        "random": lambda _: AnyPod(),
        "power-of-two": lambda _: PowerOfTwo(),
        "prefix-cache": PrefixCache,
        "session-affinity": SessionAffinity,
        "prefix-cache-preble": Preble,
        "slo": lambda _: LeastLoad("slo", bounded=True),
        "slo-pack-load": lambda _: PackLoad(),
        "slo-least-load": lambda _: LeastLoad("slo-least-load", bounded=False),
        "slo-least-load-pulling": lambda _: LeastLoad("slo-least-load-pulling", bounded=True),
    }
)
"""The algorithms that are more by themselves than their scorer, or have none."""


def create_algorithms(options: PolicyOptions) -> Mapping[str, Algorithm]:
    """Return the algorithms by name, as they are by themselves."""
    return {name: _create_algorithm(name, options) for name in ALGORITHM_NAMES}


def _create_algorithm(name: str, options: PolicyOptions) -> Algorithm:
    create = _ALONE.get(name)
    return Alone(SCORERS[name](options)) if create is None else create(options)


def create_strategies(
    prefill_policy: str = "ttft",
    decode_policy: str = "kv_capacity",
    options: PolicyOptions = DEFAULT_OPTIONS,
) -> StrategyBook:
    """Return the strategies by what users write.

    Args:
        prefill_policy: how `pd` scores prefill pods.
        decode_policy: how `pd` scores decode pods.
        options: what else the operator decided about `pd` and the algorithms.
    """
    algorithms = create_algorithms(options)
    scorers = {name: create(options) for name, create in SCORERS.items()}
    listed = {name: Alone(scorer) for name, scorer in scorers.items()}
    prefill: PolicyBook[PrefillPolicy] = PolicyBook(
        {name: create(options) for name, create in PREFILL_POLICIES.items()}
        | {name: AlgorithmPrefill(algorithms[name]) for name in PREFILL_ALGORITHM_NAMES},
        prefill_policy,
        CombinedPrefill,
        {name: AlgorithmPrefill(algorithm) for name, algorithm in listed.items()},
    )
    decode: PolicyBook[DecodePolicy] = PolicyBook(
        {name: create(options) for name, create in DECODE_POLICIES.items()}
        | {name: AlgorithmDecode(algorithms[name]) for name in DECODE_ALGORITHM_NAMES},
        decode_policy,
        CombinedDecode,
        {name: AlgorithmDecode(algorithm) for name, algorithm in listed.items()},
    )
    pd = PrefillDecode(
        prefill, decode, bucketing=options.bucketing, locality=options.locality_weight
    )
    strategies: Sequence[Strategy] = (pd, *map(SinglePod, algorithms.values()))
    return StrategyBook({strategy.name: strategy for strategy in strategies}, scorers)
