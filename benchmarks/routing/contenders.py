"""What is compared: each contender is a pair of policies, and how its router works."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from benchmarks.routing.baselines import (
    Anyone,
    BetterOfTwoDecodes,
    BetterOfTwoPrefills,
    FewestDecodes,
    FewestPrefills,
    MooncakeStyle,
    SGLangCacheAware,
)
from benchmarks.routing.cluster.model import Hardware
from benchmarks.routing.cluster.router_replica import RouterOptions
from pdrouter.routing.combination import PolicyBook
from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.routing.decision import Strategy
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.policy import DecodePolicy, PrefillPolicy
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings import Settings
from pdrouter.settings.choices import Aggregation

OURS = "pdrouter"
OURS_APART = "pdrouter-never"
"""Ours where no request that could be split is served whole."""
AIBRIX = "aibrix"
LEAST_REQUEST = "least-request"
SIMPLE = ("random", "power-of-two", LEAST_REQUEST)
"""What operators have without knowing anything of caches."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to choose pods.

    Attributes:
        name: name, for people.
        create: gives the strategy for some hardware; called once per replica of the router.
        index_follows_caches: whether its index of prefixes forgets as fast as the engines' caches.
        aggregation: when it lets a decode pod serve a request whole.
        deadlines: when requests are due, where it tells engines so and they heed it.
    """

    name: str
    create: Callable[[Hardware], Strategy]
    index_follows_caches: bool = False
    aggregation: Aggregation = Aggregation.NEVER
    deadlines: DeadlineRules | None = None

    def adapt(self, options: RouterOptions) -> RouterOptions:
        """Return the options with what is this contender's own."""
        return replace(
            options,
            index_follows_caches=self.index_follows_caches,
            aggregation=self.aggregation,
            learns_caches=self.index_follows_caches,
            deadlines=self.deadlines,
        )


def _use(prefill: str, decode: str) -> Callable[[Hardware], Strategy]:
    """Return what creates the `pd` strategy with two policies of the router's own."""

    def create(_: Hardware) -> Strategy:
        return create_strategies(prefill, decode)["pd"]

    return create


def _pair(prefill: PrefillPolicy, decode: DecodePolicy) -> Strategy:
    """Return the `pd` strategy with two policies."""
    return PrefillDecode(PolicyBook.of(prefill), PolicyBook.of(decode))


def _create_mooncake(hardware: Hardware) -> Strategy:
    return _pair(MooncakeStyle(hardware.prefill.run), FewestDecodes())


CONTENDERS: Mapping[str, Contender] = MappingProxyType(
    {
        contender.name: contender
        for contender in (
            Contender("random", lambda _: _pair(Anyone(), Anyone())),
            Contender(
                "power-of-two",
                lambda _: _pair(BetterOfTwoPrefills(), BetterOfTwoDecodes()),
            ),
            Contender("least-request", lambda _: _pair(FewestPrefills(), FewestDecodes())),
            Contender(AIBRIX, _use("prefix_cache", "load_balancing")),
            Contender("aibrix-conductor", _use("conductor", "conductor")),
            Contender(
                "sglang-cache-aware",
                lambda _: _pair(SGLangCacheAware(), BetterOfTwoDecodes()),
            ),
            Contender("mooncake", _create_mooncake, index_follows_caches=True),
            Contender(OURS, _use("ttft", "kv_capacity"), True, Settings().aggregation),
            Contender(OURS_APART, _use("ttft", "kv_capacity"), True),
            Contender(
                f"{OURS}-when-faster", _use("ttft", "kv_capacity"), True, Aggregation.WHEN_FASTER
            ),
            Contender(f"{OURS}-due", _use("ttft", "kv_capacity"), True, deadlines=DeadlineRules()),
            Contender(
                f"{OURS}-when-faster-due",
                _use("ttft", "kv_capacity"),
                True,
                Aggregation.WHEN_FASTER,
                deadlines=DeadlineRules(),
            ),
        )
    }
)

_VARIANTS = tuple(
    name for name in CONTENDERS if name.startswith(OURS) and name not in {OURS, OURS_APART}
)
COMPARED = tuple(name for name in CONTENDERS if name not in _VARIANTS)
"""Those that the report shows; the others are for experiments."""
REPEATED = (LEAST_REQUEST, AIBRIX, OURS)
"""Those that are run with several seeds."""
