"""One process of the router in a simulation: its own ledger, prefix index and samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from msgspec import structs

from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.view import ModelPods
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample, Samples, count_free_tokens, count_kv_capacity
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.admission import DeadlineMissed, QueueTooLong
from pdrouter.routing.aggregation import DEFAULT_WHOLE_RULES, WholeRules
from pdrouter.routing.deadlines import DeadlineRules, assume_deadline
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.homes import Homes
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategy_book import StrategyBook
from pdrouter.routing.whole_lessons import learn_first_token, learn_prompt, note_sent
from pdrouter.settings.choices import Aggregation
from pdrouter.wiring.sharing import Sharing

_Count = Callable[[Mapping[str, EngineSample], Iterable[str]], float | None]


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How the replicas of the router work.

    Attributes:
        turn_s: seconds after which a replica's other workers see what one has changed, but for
            prefill legs, which they see at once.
        replicas: how many there are; they get requests in turn and do not talk to each other.
        replica: which of them this one is, from 0 on.
        scrape_interval_s: seconds between two looks at the engines' metrics.
        index_bytes: memory of each prefix index.
        index_ttl_s: seconds after which it forgets a prefix that nobody used.
        index_follows_caches: whether it forgets as fast as the engines' caches do, by the KV memory
            that their metrics tell of, or by its memory and age alone.
        prefill_buckets: prompt lengths that prefill engines of static shapes are compiled for.
        max_wait_s: predicted seconds in a prefill queue above which requests are refused; None for
            no limit.
        aggregation: when a decode pod serves a request whole that could be split.
        handover_s: seconds from the end of prefill to the first token, as the router has it; None
            to let it measure them.
        whole: what must hold of a request that is served whole to be faster.
        learns_caches: whether it learns from what engines say they had cached of each prompt.
        deadlines: when requests are due, which the router tells engines that serve first what is
            due first; None where they serve first what came first.
    """

    turn_s: float = 0.001
    replicas: int = 1
    replica: int = 0
    scrape_interval_s: float = 1.0
    index_bytes: int = 64 * 2**20
    index_ttl_s: float = 1200.0
    index_follows_caches: bool = True
    prefill_buckets: tuple[int, ...] = ()
    max_wait_s: float | None = None
    aggregation: Aggregation = Aggregation.NEVER
    handover_s: float | None = None
    whole: WholeRules = DEFAULT_WHOLE_RULES
    learns_caches: bool = True
    deadlines: DeadlineRules | None = None


class RoutedLegs:
    """The legs of one request, as its replica counts them.

    Attributes:
        decision: where they go.
        priority: what engines are told: those of lower values go first, where they heed it.
    """

    __slots__ = (
        "_decode",
        "_facts",
        "_on_computed",
        "_prefill",
        "_replica",
        "decision",
        "priority",
    )

    def __init__(
        self,
        decision: Decision,
        facts: RoutingFacts,
        replica: "RouterReplica",
        *,
        decode: Scope,
        prefill: Scope | None,
        priority: float,
        on_computed: Callable[[int], None] | None = None,
    ) -> None:
        self.decision = decision
        self._on_computed = on_computed
        self.priority = priority
        self._facts = facts
        self._replica = replica
        self._decode = decode
        self._prefill = prefill

    def finish_prefill(self, computed_tokens: int) -> None:
        """Count the prefill leg no more, and learn from it."""
        if self._prefill is None:
            raise ValueError("a request that is served whole has no prefill leg")
        self._prefill.complete(computed_tokens)
        self._prefill.release()
        if self._on_computed is not None:
            self._on_computed(computed_tokens)

    def note_first_token(self, seconds: float) -> None:
        """Learn from the first token, which came so long after the last leg was sent."""
        decision, replica = self.decision, self._replica
        learn_first_token(decision, decision.reason, replica.model, replica.state, seconds)

    def finish(self) -> None:
        """Count the request no more."""
        self._decode.release()
        replica = self._replica
        learn_prompt(self.decision, self._facts, replica.state, None, replica.model)


class RouterReplica:
    """Routes requests as the router does, with the router's own parts.

    Attributes:
        model: name of the model.
        ledger: the work that this replica has in flight.
        samples: the engines' metrics as last seen.
        router: decides.
    """

    def __init__(
        self,
        strategy: Strategy,
        pods: ModelPods,
        options: RouterOptions,
        clock: Callable[[], float],
        random: Random,
        *,
        sharing: Sharing | None = None,
    ) -> None:
        sharing = sharing or Sharing(clock=clock)
        share, clock = sharing.share, sharing.clock
        self._strategy = strategy
        self._pods = pods
        self.model = pods.model
        self._options = options
        rates = share(PrefillRates)(buckets=options.prefill_buckets)
        self.ledger = share(Ledger)(rates, clock)
        self.samples = share(Samples)()
        self.state = RoutingState(
            self.ledger,
            self._create_index(share(PrefixIndex), clock, count_kv_capacity),
            self.samples,
            clock,
            random,
            whole=share(WholeServing)(options.handover_s, clock),
            decoded=share(DecodedPrompts)(
                self._create_index(PrefixIndex, clock, count_free_tokens)
            ),
            homes=Homes(_form_group(options)),
            catch_up=sharing.catch_up,
        )
        rules = RoutingRules(options.aggregation, options.whole, options.max_wait_s)
        self.router = Router(StrategyBook({strategy.name: strategy}), self.state, rules)

    def _create_index(
        self, index: type[PrefixIndex], clock: Callable[[], float], count: _Count
    ) -> PrefixIndex:
        """Return an index that forgets as its pods do, by what they say of their memory."""
        options = self._options
        follows = options.index_follows_caches
        return index(
            options.index_bytes,
            options.index_ttl_s,
            clock,
            lambda uids: count(self.samples, uids) if follows else None,
        )

    def route(self, facts: RoutingFacts) -> RoutedLegs | None:
        """Choose the pods for a request and count its legs; None if it is refused."""
        self.state.catch_up()
        rules = self._options.deadlines
        if rules is not None:
            came, rates = self.state.clock(), self.ledger.rates
            deadline = assume_deadline(rules, facts.prompt_tokens, rates, came)
            facts = structs.replace(facts, deadline=deadline)
        try:
            decision = self.router.decide(self._strategy, facts, self._pods)
        except (NoReadyPod, QueueTooLong, DeadlineMissed):
            return None
        decode, prefill = decision.last, decision.prefill
        scope = on_computed = None
        decode_scope = self.ledger.start(decode.leg, decode.pod.uid, decode.tokens)
        if prefill is not None:
            scope = self.ledger.start(
                prefill.leg,
                prefill.pod.uid,
                prefill.tokens,
                facts.due,
                cached=facts.prompt_tokens - prefill.tokens,
            )
            prefix, uid, prefixes = facts.prefix, prefill.pod.uid, self.state.prefixes
            recalled = prefixes.recall(prefix.hashes, uid)
            prefixes.add(prefix.hashes, uid, prefill.tokens)
            if self._options.learns_caches:
                on_computed = partial(self._learn_cached, prefix, uid, recalled)
        note_sent(decision, self.state)
        return RoutedLegs(
            decision,
            facts,
            self,
            decode=decode_scope,
            prefill=scope,
            priority=facts.due or 0.0,
            on_computed=on_computed,
        )

    def _learn_cached(
        self, prefix: PromptPrefix, uid: str, recalled: Sequence[int], computed: int
    ) -> None:
        """Learn from what an engine had cached of a prompt."""
        _, most = prefix.count_cached(prefix.size - computed, prefix.size)
        self.state.prefixes.confirm(prefix.hashes, uid, recalled, most)

    def observe(self, samples: Mapping[str, EngineSample]) -> None:
        """Take new metrics of all engines, for all workers of this replica."""
        for uid, sample in samples.items():
            own = self.ledger.count_requests(uid)
            seen = replace(sample, own_requests=own)
            self.samples.put(uid, seen)
            self.ledger.note_others(uid, seen.others)


def _form_group(options: RouterOptions) -> RouterGroup:
    names = [str(number) for number in range(options.replicas)]
    return RouterGroup(names[options.replica], replicas=names)
