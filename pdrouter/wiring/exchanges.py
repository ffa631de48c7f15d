"""The graph of objects behind an exchange.

Here each collaborator is handed over once. The application puts sockets, clocks and sources around
it; tests and simulations put stand-ins there.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from pdrouter.cluster.source import RouteCheck
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import Splits
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.shared import Shared
from pdrouter.load.output_length import OutputLengths
from pdrouter.load.peers import PeerKnowledge
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.load.proofs import Proofs
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.load.token_weights import TokenWeights
from pdrouter.load.turn_claims import TurnClaims
from pdrouter.load.usage_news import UsageNews
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.openai.headers import FORWARDED_TO_SIDE_LEGS
from pdrouter.routing.aggregation import WholeRules
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies
from pdrouter.serving.answers import AnswerObserver, AnswerReports
from pdrouter.serving.cache_reports import CacheObserver, CacheReports
from pdrouter.serving.charges import Charges
from pdrouter.serving.choosing import PodChooser
from pdrouter.serving.drains import Drains
from pdrouter.serving.encoding import EncodeLegs
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.fair_queue import FairQueues, QueueObserver
from pdrouter.serving.gate import Gate
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.introductions import Introductions
from pdrouter.serving.lease import Leases
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.models import Models
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.pod_questions import PodQuestions
from pdrouter.serving.priorities import Priorities, PriorityObserver
from pdrouter.serving.record import Observer
from pdrouter.serving.release import ReleaseObserver, Releases
from pdrouter.serving.response_holders import ResponseHolders
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.serving.trace import BeginTrace
from pdrouter.serving.unsplittable import UnsplittableKinds
from pdrouter.serving.wakes import Wakes
from pdrouter.serving.way import Dispatcher
from pdrouter.serving.worker_turns import WorkerTurns
from pdrouter.settings import Settings
from pdrouter.settings.choices import Fairness, OnFailure
from pdrouter.users.counters import Counters
from pdrouter.users.directory import Directory
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.local_counters import LocalCounters
from pdrouter.wiring.rules import (
    choose_affinity_rules,
    choose_dispatch_policy,
    choose_encode_rules,
    choose_exchange_policy,
    choose_fairness_rules,
    choose_policy_options,
    choose_priority_rules,
    choose_release_rules,
    choose_retry_rules,
    create_splits,
)
from pdrouter.wiring.sharing import Sharing
from pdrouter.wiring.users import create_identities


class ExchangeObserver(
    Observer,
    AnswerObserver,
    ReleaseObserver,
    PriorityObserver,
    CacheObserver,
    QueueObserver,
    Protocol,
):
    """Is told of requests and of their answers. Must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What exchanges work with, and do not make themselves.

    Attributes:
        cache: the pods.
        router: decides, and knows the pods' condition.
        client: sends side legs.
        observer: is told what happens.
        tokenizers: count prompts' tokens.
        bodies: bounds the bodies that wait.
        routes: checks the models' own routes; None to let requests pass unchecked.
        peers: what wires know of engines.
        begin_trace: begins traces of requests; None where there are none.
        sharing: how what is learnt becomes the knowledge of all workers.
        keys: users by their keys, and all limits.
        counters: count against limits.
        directory: knows users by the names of a trusted header; None where they are not kept
            elsewhere.
    """

    cache: PodCache
    router: Router
    client: EngineClient
    observer: ExchangeObserver
    tokenizers: PromptTokenizers
    bodies: HeldBodies
    routes: RouteCheck | None = None
    peers: PeerKnowledge = field(default_factory=PeerKnowledge)
    begin_trace: BeginTrace | None = None
    sharing: Sharing = field(default_factory=Sharing)
    keys: KeysFile = field(default_factory=KeysFile)
    counters: Counters = field(default_factory=LocalCounters)
    directory: Directory | None = None


class Exchanges:
    """Opens exchanges. All that they share is put together here. One for the whole process.

    Attributes:
        dispatcher: finds the way of requests.
        lengths: what is learnt of the length of answers.
        answers: where all reports of answers go.
        gate: lets requests in, as far as limits have room.
        releases: have blocks freed that nobody fetches.
        drains: own side legs that end after their request.
        wakes: have models woken that sleep.
        questions: asks pods that were left out.
        leases: know which handles are still good.
        turns: lets users take turns; None where they do not.
        priorities: tell engines when requests are due.
        shared: what each exchange gets of all this.
    """

    def __init__(self, settings: Settings, around: Surroundings) -> None:
        self._around = around
        state, share = around.router.state, around.sharing.share
        proofs = share(Proofs)(state.clock)
        outcomes = PodOutcomes(state.failures, proofs)
        weights = TokenWeights(settings.input_token_weight, settings.output_token_weight)
        self._charges = Charges(state.served, weights, news=share(UsageNews)(state.clock))
        self.turns = self._create_turns(settings)
        self.questions = PodQuestions(around.client, around.cache, outcomes)
        self.lengths = share(OutputLengths)(settings.expected_output_tokens)
        self.gate = self._create_gate(settings)
        self.answers = self._create_answers(outcomes)
        ratios = share(TokenRatios)()
        kinds = share(UnsplittableKinds)(state.clock)
        policy = choose_dispatch_policy(settings)
        splits = create_splits(settings)
        self.drains = Drains()
        self.wakes = Wakes(around.client)
        self.releases = self._create_releases(settings, splits)
        self.leases = Leases(settings.kv_lease_s)
        caches = CacheReports(state.prefixes, around.observer, proofs)
        lessons = LegLessons(outcomes, kinds, ratios, around.observer, caches)
        rules = choose_priority_rules(settings)
        self.priorities = Priorities(around.client, state.priorities, around.observer, rules)
        legs = self._create_legs(settings, splits, lessons)
        holders = ResponseHolders(around.cache, around.observer)
        self.dispatcher = Dispatcher(
            chooser=PodChooser(
                models=Models(around.cache, self.wakes),
                cache=around.cache,
                router=around.router,
                ratios=ratios,
                lengths=self.lengths,
                policy=policy,
                observer=around.observer,
                kinds=kinds,
                splits=splits,
                holders=holders,
                charges=self._charges,
                turns=self.turns,
            ),
            legs=legs,
            encoders=EncodeLegs(legs, choose_encode_rules(settings)),
            splits=splits,
            tokenizers=around.tokenizers,
            releases=self.releases,
            drains=self.drains,
            priorities=self.priorities,
            policy=policy,
            gate=self.gate,
            forwarded=rules.keep((*FORWARDED_TO_SIDE_LEGS, *policy.forward_headers)),
            routes=around.routes,
        )
        self.shared = self._create_shared(settings)

    def _create_shared(self, settings: Settings) -> Shared:
        around = self._around
        return Shared(
            self.dispatcher,
            around.cache,
            around.observer,
            self.answers,
            choose_exchange_policy(settings),
            create_identities(settings, around.keys, around.directory, self.gate.failures),
            around.bodies,
            around.begin_trace,
        )

    def _create_answers(self, outcomes: PodOutcomes) -> AnswerReports:
        return AnswerReports(
            cache=self._around.cache,
            lengths=self.lengths,
            observer=self._around.observer,
            on_cut=outcomes.note_cut,
            on_usage=self._charges.note_usage,
            settle=self.gate.settle,
        )

    def _create_releases(self, settings: Settings, splits: Splits) -> Releases:
        around = self._around
        return Releases(
            around.client,
            around.cache,
            around.router.state.failures,
            splits,
            observer=around.observer,
            rules=choose_release_rules(settings),
        )

    def _create_gate(self, settings: Settings) -> Gate:
        return Gate(
            self._around.counters,
            self._around.keys,
            open_on_failure=settings.limits_on_failure is OnFailure.OPEN,
            merges_namespaces=settings.merge_namespaces,
        )

    def _create_turns(self, settings: Settings) -> FairQueues | None:
        if settings.fairness is Fairness.OFF:
            return None
        around = self._around
        rules, state, workers = choose_fairness_rules(settings), around.router.state, None
        share = around.sharing.share
        if settings.workers > 1:
            claims = share(TurnClaims)(state.clock)
            workers = WorkerTurns(claims, state.ledger.rates, self._charges.weights)
        return FairQueues(
            around.router,
            around.cache,
            around.observer,
            rules,
            counters=share(VirtualTokens)(),
            charges=self._charges,
            workers=workers,
        )

    def _create_legs(self, settings: Settings, splits: Splits, lessons: LegLessons) -> SideLegs:
        around = self._around
        budget = around.sharing.share(RetryBudget)
        return SideLegs(
            client=around.client,
            cache=around.cache,
            router=around.router,
            splits=splits,
            lessons=lessons,
            total_s=settings.prefill_timeout_s,
            retries=settings.prefill_retries,
            budget=budget(choose_retry_rules(settings), around.router.state.clock),
            introductions=Introductions(around.client, around.peers),
            leases=self.leases,
            priorities=self.priorities,
        )

    def open(
        self, send: Callable[[bytes], Awaitable[object]], interrupt: Callable[[], object]
    ) -> Exchange:
        """Begin the exchange of a new stream.

        Args:
            send: sends a message on the stream.
            interrupt: ends the reading of messages.
        """
        return Exchange(self.shared, send, interrupt)


def create_router(settings: Settings, state: RoutingState) -> Router:
    """Return what chooses the pods, by their condition."""
    strategies = create_strategies(
        settings.prefill_policy, settings.decode_policy, choose_policy_options(settings)
    )
    whole = WholeRules(gap_s=settings.gap_s, bucketing=settings.bucketing)
    late, tokens = settings.refuse_late, settings.source_tokens
    affinity = choose_affinity_rules(settings)
    rules = RoutingRules(settings.aggregation, whole, settings.max_wait_s, late, tokens, affinity)
    return Router(strategies, state, rules)
