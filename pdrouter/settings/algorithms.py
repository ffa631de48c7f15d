"""The settings of the algorithms that choose one pod."""

from dataclasses import dataclass

from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import number


@dataclass(frozen=True)
class AlgorithmSettings:
    """Settings of aibrix's algorithms, for whole requests and for the legs of `pd`."""

    request_imbalance_spread: int = declare(
        8,
        "AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT",
        number(int, "a whole number", 0, 1_000_000),
        "For `prefix-cache`: requests by which pods may differ before only those with the fewest "
        "are looked at.",
        advanced=True,
    )
