"""What is known of the pods' condition when a request is routed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from pdrouter.engines.split import Leg
from pdrouter.load.cached_prefixes import CachedPrefixes
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.load.recent_prompts import RecentPrompts
from pdrouter.load.samples import EngineSample
from pdrouter.load.served_tokens import ServedTokens
from pdrouter.load.whole_serving import WholeServing
from pdrouter.routing.homes import Homes


def _know_all() -> None:
    """Do nothing: there is no other worker."""


@dataclass(frozen=True, slots=True)
class RoutingState:
    """Read by strategies; changed by what happens to requests.

    Attributes:
        ledger: work in flight that this router has sent, and how fast pods are.
        prefixes: which pods have probably cached which prefixes.
        samples: what engines say of themselves, by UID; fresh ones only.
        clock: gives the time in seconds.
        random: source of randomness.
        failures: which pods have failed of late.
        priorities: which engines take first what is due first.
        whole: how decode pods do with whole requests.
        decoded: which decode pods have probably cached which conversations.
        homes: which pods this router goes to first.
        recent: which prompts have come of late, and where to.
        served: what users were served of late.
        catch_up: takes over what other workers have changed until now; called before a choice.
    """

    ledger: Ledger
    prefixes: CachedPrefixes
    samples: Mapping[str, EngineSample]
    clock: Callable[[], float]
    random: Random
    failures: FailureMemory = field(default_factory=FailureMemory)
    priorities: PriorityKnowledge = field(default_factory=PriorityKnowledge)
    whole: WholeServing = field(default_factory=WholeServing)
    decoded: DecodedPrompts = field(default_factory=DecodedPrompts)
    homes: Homes = field(default_factory=Homes)
    catch_up: Callable[[], object] = _know_all
    recent: RecentPrompts = field(default_factory=RecentPrompts)
    served: ServedTokens = field(default_factory=ServedTokens)

    def hold(
        self, leg: Leg, uid: str, tokens: int = 0, due: float | None = None, cached: int = 0
    ) -> Scope:
        """Count a leg as `Ledger.start` does; if its pod is out, nobody else tries it then."""
        scope = self.ledger.start(leg, uid, tokens, due, cached)
        scope.trial = self.failures.start_trial(uid, leg)
        return scope
