"""The settings of the algorithms that choose one pod."""

from dataclasses import dataclass

from pdrouter.settings.choices import PREBLE_GPUS
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
