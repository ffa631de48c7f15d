"""The strategies by the names that users give them."""

from collections.abc import Mapping
from types import MappingProxyType

from pdrouter.routing.decision import Strategy
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.single_pod import LEAST_REQUEST, RANDOM

_ALL: tuple[Strategy, ...] = (PrefillDecode(), RANDOM, LEAST_REQUEST)

STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {strategy.name: strategy for strategy in _ALL}
)
"""Values of `ROUTING_ALGORITHM` and of the `routing-strategy` header."""
