"""The settings of the algorithms that choose one pod."""

from dataclasses import dataclass

from pdrouter.settings.choices import PREBLE_GPUS, VTC_UNITS_S
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import choice, number, time_in


@dataclass(frozen=True)
class AlgorithmSettings:
    """Settings of aibrix's algorithms, for whole requests and for the legs of `pd`."""

    request_imbalance_spread: int = declare(
        8,
        "AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT",
        number(int, "a whole number", 0, 1_000_000),
        "For `prefix-cache` and `prefix-cache-preble`: requests by which pods may differ before "
        "only those with the fewest are looked at.",
        advanced=True,
    )
    preble_gpu: str = declare(
        "V100",
        "AIBRIX_ROUTER_PREBLE_TARGET_GPU",
        choice(*PREBLE_GPUS),
        "For `prefix-cache-preble`: the GPU by whose curve the cost of prompts is reckoned.",
        advanced=True,
    )
    preble_output_tokens: int = declare(
        45,
        "AIBRIX_ROUTER_PREBLE_DECODING_LENGTH",
        number(int, "a whole number of tokens", 1, 1_000_000),
        "For `prefix-cache-preble`: length of an answer, for its cost.",
        advanced=True,
    )
    preble_window_minutes: float = declare(
        3.0,
        "AIBRIX_ROUTER_PREBLE_SLIDING_WINDOW_PERIOD",
        time_in(60, "minutes, or a time such as 90s,", 0, 1440, above=True),
        "For `prefix-cache-preble`: how far back prompts count.",
        advanced=True,
    )
    vtc_window: float = declare(
        5.0,
        "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_WINDOW_SIZE",
        number(float, "a number of AIBRIX_ROUTER_VTC_TOKEN_TRACKER_TIME_UNIT", 0, 1e7, above=True),
        "For `vtc-basic`: how far back what users were served counts.",
        advanced=True,
    )
    vtc_unit: str = declare(
        "minutes",
        "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_TIME_UNIT",
        choice(*VTC_UNITS_S),
        "The unit of AIBRIX_ROUTER_VTC_TOKEN_TRACKER_WINDOW_SIZE.",
        advanced=True,
    )
    vtc_min_tokens: float = declare(
        1000.0,
        "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_MIN_TOKENS",
        number(float, "a number of tokens", 0, 1e12, above=True),
        "For `vtc-basic`: the least weighted tokens between the users of one pod and of the next "
        "one; and what counts as the fewest of any user while nobody has any.",
        advanced=True,
    )
    vtc_max_tokens: float = declare(
        8000.0,
        "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_MAX_TOKENS",
        number(float, "a number of tokens", 0, 1e12, above=True),
        "For `vtc-basic`: what counts as the most of any user while nobody has any.",
        advanced=True,
    )
    vtc_max_pod_load: float = declare(
        100.0,
        "AIBRIX_ROUTER_VTC_BASIC_MAX_POD_LOAD",
        number(float, "a number of requests", 0, 1e6, above=True),
        "For `vtc-basic`: requests on a pod that is fully used.",
        advanced=True,
    )
    vtc_fairness_weight: float = declare(
        1.0,
        "AIBRIX_ROUTER_VTC_BASIC_FAIRNESS_WEIGHT",
        number(float, "a number", 0, 1_000_000),
        "For `vtc-basic`: what the distance of a pod from a user's place counts.",
        advanced=True,
    )
    vtc_utilization_weight: float = declare(
        1.0,
        "AIBRIX_ROUTER_VTC_BASIC_UTILIZATION_WEIGHT",
        number(float, "a number", 0, 1_000_000),
        "For `vtc-basic`: what a fully used pod counts.",
        advanced=True,
    )
