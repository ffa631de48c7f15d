"""All that is known of the pods' condition, put together for a process."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from pdrouter.cluster.router_group import RouterGroup
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.peers import PeerKnowledge
from pdrouter.load.preble_curves import PREBLE_CURVES
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.load.recent_prompts import RecentPrompts
from pdrouter.load.samples import EngineSample, Samples, count_free_tokens, count_kv_capacity
from pdrouter.load.served_tokens import ServedTokens
from pdrouter.load.whole_serving import WholeServing
from pdrouter.routing.homes import Homes
from pdrouter.routing.state import RoutingState
from pdrouter.settings import Settings
from pdrouter.settings.choices import VTC_UNITS_S
from pdrouter.wiring.rules import choose_ejection_rules
from pdrouter.wiring.sharing import Sharing

_Count = Callable[[Mapping[str, EngineSample], Iterable[str]], float | None]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What choices are made by, and what wires know of engines.

    Attributes:
        state: what choices are made by.
        samples: what engines say of themselves.
        peers: what wires know of them.
    """

    state: RoutingState
    samples: Samples
    peers: PeerKnowledge
    prefixes: PrefixIndex

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self.state.ledger.forget(uid)
        self.samples.forget(uid)
        self.forget_engine(uid)

    def forget_engine(self, uid: str) -> None:
        """Forget what goes with the engine of a pod: another one runs in it."""
        state = self.state
        for memory in (
            *(self.prefixes, state.failures, self.peers),
            *(state.priorities, state.whole, state.decoded, state.recent),
        ):
            memory.forget(uid)

    def note_unreachable(self, uid: str) -> None:
        """Note that a pod cannot be connected to: its engine may start anew."""
        self.peers.note_unreachable(uid)
        self.state.priorities.note_unreachable(uid)


def create_knowledge(settings: Settings, sharing: Sharing, group: RouterGroup) -> Knowledge:
    """Return a process's knowledge, with nothing known.

    Args:
        settings: what the operator decided.
        sharing: how it becomes that of all workers.
        group: the routers that send to the same pods.
    """
    share, clock = sharing.share, sharing.clock
    samples = share(Samples)()

    def create_index(index: type[PrefixIndex], count: _Count) -> PrefixIndex:
        seconds = settings.prefix_ttl_minutes * 60
        return index(settings.prefix_index_bytes, seconds, clock, lambda uids: count(samples, uids))

    rates = share(PrefillRates)(settings.prefill_tokens_per_s, settings.prefill_buckets)
    prefixes = create_index(share(PrefixIndex), count_kv_capacity)
    rules = choose_ejection_rules(settings)
    state = RoutingState(
        share(Ledger)(rates, clock),
        prefixes,
        samples,
        clock,
        Random(),
        share(FailureMemory)(rules, clock, sharing.create_random()),
        share(PriorityKnowledge)(clock),
        share(WholeServing)(settings.handover_s, clock),
        # Its index changes with it alone.
        share(DecodedPrompts)(create_index(PrefixIndex, count_free_tokens)),
        Homes(group),
        sharing.catch_up,
        share(RecentPrompts)(
            settings.preble_window_minutes * 60, clock, PREBLE_CURVES[settings.preble_gpu]
        ),
        share(ServedTokens)(settings.vtc_window * VTC_UNITS_S[settings.vtc_unit], clock),
    )
    return Knowledge(state, samples, share(PeerKnowledge)(clock), prefixes)
