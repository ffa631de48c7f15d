"""The graph of objects behind an exchange, and the rules of the rooms, each from what is set.

Here each collaborator is handed over once. The application puts sockets, clocks and sources around
it; tests and simulations put stand-ins there.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Protocol

from pdrouter.cluster.endpoints_file import EndpointsFile
from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.pod_addresses import AddressRules, find_own_addresses
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.source import PodSource, RouteCheck
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engines.registry import WIRES, SplitRules, Splits
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.exchange_policy import ExchangePolicy
from pdrouter.extproc.header_limits import HeaderLimits
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.tls import TlsFiles
from pdrouter.load.failures import EjectionRules
from pdrouter.load.output_length import OutputLengths
from pdrouter.load.peers import PeerKnowledge
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.load.retry_budget import RetryBudget, RetryRules
from pdrouter.openai.headers import FORWARDED_TO_SIDE_LEGS
from pdrouter.routing.aggregation import WholeRules
from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies
from pdrouter.serving.answers import AnswerObserver, AnswerReports
from pdrouter.serving.cache_reports import CacheObserver, CacheReports
from pdrouter.serving.choosing import PodChooser
from pdrouter.serving.drains import Drains
from pdrouter.serving.encoding import EncodeLegs, EncodeRules
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.introductions import Introductions
from pdrouter.serving.lease import Leases
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.pod_questions import PodQuestions
from pdrouter.serving.policy import DispatchPolicy
from pdrouter.serving.priorities import Priorities, PriorityObserver, PriorityRules
from pdrouter.serving.rate_limit import RateLimiter
from pdrouter.serving.record import Observer
from pdrouter.serving.release import ReleaseObserver, ReleaseRules, Releases
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.serving.trace import BeginTrace
from pdrouter.serving.unsplittable import UnsplittableKinds
from pdrouter.serving.way import Dispatcher
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import BlockRelease, Priority, Routing, TokenIds
from pdrouter.settings.key_files import read_key


class ExchangeObserver(
    Observer, AnswerObserver, ReleaseObserver, PriorityObserver, CacheObserver, Protocol
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


class Exchanges:
    """Opens exchanges. All that they share is put together here. One for the whole process.

    Attributes:
        dispatcher: finds the way of requests.
        lengths: what is learnt of the length of answers.
        answers: where all reports of answers go.
        releases: have blocks freed that nobody fetches.
        drains: own side legs that end after their request.
        questions: asks pods that were left out.
        leases: know which handles are still good.
        priorities: tell engines when requests are due.
    """

    def __init__(self, settings: Settings, around: Surroundings) -> None:
        self._around = around
        self._policy = choose_exchange_policy(settings)
        state = around.router.state
        outcomes = PodOutcomes(state.failures)
        self.questions = PodQuestions(around.client, around.cache, outcomes)
        self.lengths = OutputLengths(settings.expected_output_tokens)
        self.answers = AnswerReports(
            cache=around.cache,
            lengths=self.lengths,
            observer=around.observer,
            on_cut=outcomes.note_cut,
        )
        ratios = TokenRatios()
        kinds = UnsplittableKinds(state.clock)
        policy = choose_dispatch_policy(settings)
        splits = create_splits(settings)
        self.drains = Drains()
        self.releases = Releases(
            around.client,
            around.cache,
            state.failures,
            splits,
            observer=around.observer,
            rules=choose_release_rules(settings),
        )
        self.leases = Leases(settings.kv_lease_s)
        caches = CacheReports(state.prefixes, around.observer)
        lessons = LegLessons(outcomes, kinds, ratios, around.observer, caches)
        rules = choose_priority_rules(settings)
        self.priorities = Priorities(around.client, state.priorities, around.observer, rules)
        legs = self._create_legs(settings, splits, lessons)
        self.dispatcher = Dispatcher(
            chooser=PodChooser(
                cache=around.cache,
                router=around.router,
                ratios=ratios,
                lengths=self.lengths,
                policy=policy,
                observer=around.observer,
                kinds=kinds,
                splits=splits,
                limiter=RateLimiter(workers=settings.workers),
            ),
            legs=legs,
            encoders=EncodeLegs(legs, choose_encode_rules(settings)),
            splits=splits,
            tokenizers=around.tokenizers,
            releases=self.releases,
            drains=self.drains,
            priorities=self.priorities,
            policy=policy,
            routes=around.routes,
        )

    def _create_legs(self, settings: Settings, splits: Splits, lessons: LegLessons) -> SideLegs:
        around = self._around
        return SideLegs(
            client=around.client,
            cache=around.cache,
            router=around.router,
            splits=splits,
            lessons=lessons,
            total_s=settings.prefill_timeout_s,
            retries=settings.prefill_retries,
            budget=RetryBudget(choose_retry_rules(settings), around.router.state.clock),
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
        return Exchange(
            self.dispatcher,
            self._around.cache,
            self._around.observer,
            self.answers,
            self._policy,
            bodies=self._around.bodies,
            send=send,
            interrupt=interrupt,
            begin_trace=self._around.begin_trace,
        )


def create_source(
    settings: Settings, cache: PodCache, group: RouterGroup, on_reload: Callable[[bool], None]
) -> PodSource:
    """Return the source of pods that the settings name; the group learns who routes to them.

    Raises:
        SettingInvalid: they name none.
    """
    if settings.endpoints is not None:
        return EndpointsFile(
            settings.endpoints,
            cache,
            wires=WIRES,
            poll_interval_s=settings.endpoints_poll_s,
            on_reload=on_reload,
            match_revisions=settings.match_revisions,
        )
    if settings.kubernetes:
        # Loaded when needed: the Kubernetes client costs 0.2 s and 12 MB.
        from pdrouter.cluster.kubernetes.api import find_kubeconfig  # noqa: PLC0415
        from pdrouter.cluster.kubernetes.router_service import find_router_service  # noqa: PLC0415
        from pdrouter.cluster.kubernetes.source import create_kubernetes_source  # noqa: PLC0415

        settings = replace(settings, kubeconfig=find_kubeconfig(settings.kubeconfig))
        return create_kubernetes_source(
            cache,
            _create_pod_rules(settings),
            kubeconfig=settings.kubeconfig,
            namespaces=settings.namespaces or tuple(filter(None, [settings.own_namespace])),
            selectors=settings.pod_selectors,
            merge_namespaces=settings.merge_namespaces,
            httproute_namespace=settings.httproute_namespace,
            httproute_ttl_s=settings.httproute_ttl_s,
            patience_s=settings.rollout_patience_s,
            routers=find_router_service(settings, group),
        )
    raise SettingInvalid("there is no source of pods: give --endpoints FILE or --kubernetes")


def create_router(settings: Settings, state: RoutingState) -> Router:
    """Return what chooses the pods, by their condition."""
    strategies = create_strategies(
        settings.prefill_policy, settings.decode_policy, choose_policy_options(settings)
    )
    whole = WholeRules(gap_s=settings.gap_s, bucketing=settings.bucketing)
    late, tokens = settings.refuse_late, settings.source_tokens
    rules = RoutingRules(settings.aggregation, whole, settings.max_wait_s, late, tokens)
    return Router(strategies, state, rules)


def choose_policy_options(settings: Settings) -> PolicyOptions:
    """Return what is set of `pd` and its policies."""
    return PolicyOptions(
        compute_weight=settings.compute_weight,
        others_weight=settings.others_weight,
        away_cost=settings.away_cost,
        bucketing=settings.bucketing,
        prefill_imbalance_spread=settings.prefill_imbalance_spread,
        decode_imbalance_spread=settings.decode_imbalance_spread,
        decode_throughput_spread=settings.decode_throughput_spread,
        decode_score_ratio=settings.decode_score_ratio,
        standard_deviation_factor=settings.standard_deviation_factor,
        locality_weight=settings.locality_weight,
        weight_running=settings.weight_running,
        weight_throughput=settings.weight_throughput,
    )


def choose_dispatch_policy(settings: Settings) -> DispatchPolicy:
    """Return what is set of the way of a request."""
    return DispatchPolicy(
        default_strategy=settings.routing_algorithm,
        split_multimodal=settings.split_multimodal,
        on_prefill_failure=settings.on_prefill_failure,
        on_handoff_failure=settings.on_handoff_failure,
        forward_headers=settings.forward_headers,
        max_forwarded_bytes=settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
        expose_pods=settings.expose_pods,
        trust_ec_locator=settings.trust_ec_locator,
        names_second=settings.pod_routing is Routing.OVERRIDE_HOST,
        deadlines=DeadlineRules(
            settings.default_target_s, settings.default_target_factor, dict(settings.classes)
        ),
        assumes_deadlines=settings.priority is not Priority.OFF,
    )


def choose_priority_rules(settings: Settings) -> PriorityRules:
    """Return what is set of the priorities that engines are told."""
    return PriorityRules(settings.priority, settings.trust_priority)


def choose_encode_rules(settings: Settings) -> EncodeRules:
    """Return what is set of the encoding of media."""
    return EncodeRules(
        settings.encode_items,
        settings.encode_concurrency,
        settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
        settings.rewrite_remote_host,
        each_leg_may=settings.split_multimodal,
    )


def choose_release_rules(settings: Settings) -> ReleaseRules:
    """Return what is set of the blocks that nobody fetches."""
    forwarded = (*FORWARDED_TO_SIDE_LEGS, *settings.forward_headers)
    return ReleaseRules(
        enabled=settings.release is BlockRelease.AUTO,
        timeout_s=settings.release_timeout_s,
        headers=choose_priority_rules(settings).keep(forwarded),
    )


def choose_ejection_rules(settings: Settings) -> EjectionRules:
    """Return what is set of the ejection of pods that fail."""
    return EjectionRules(
        after=settings.eject_after,
        backoff_s=settings.eject_s,
        longest_s=max(settings.eject_s, settings.eject_longest_s),
        share=settings.eject_share,
        asks=settings.eject_asks,
    )


def choose_retry_rules(settings: Settings) -> RetryRules:
    """Return what is set of how many requests may be tried again."""
    return RetryRules(
        share=settings.retry_budget_share,
        per_second=settings.retry_budget_per_second,
        window_s=settings.retry_budget_window_s,
    )


def _create_pod_rules(settings: Settings) -> PodRules:
    own = find_own_addresses(settings.own_addresses, in_pod=settings.kubeconfig is None)
    return PodRules(
        WIRES,
        AddressRules(tuple(map(ip_network, settings.pod_networks)), own),
        ModelNamespaces(settings.model_namespaces),
        match_revisions=settings.match_revisions,
        topology_labels=settings.topology_labels,
        hardware_labels=settings.hardware_labels,
    )


def limit_client(settings: Settings) -> ClientLimits:
    """Return what bounds the router's own requests to engines."""
    return ClientLimits(
        settings.prefill_connect_timeout_s,
        settings.prefill_response_timeout_s or settings.prefill_timeout_s,
        settings.max_message_bytes,
    )


def find_tls(settings: Settings) -> TlsFiles | None:
    """Return the files for TLS on the gRPC port; None where it is plain text."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def choose_exchange_policy(settings: Settings) -> ExchangePolicy:
    """Return what is set of the answers to requests."""
    return ExchangePolicy(
        expose_pods=settings.expose_pods,
        explain_decisions=settings.explain_decisions,
        bearer_token=settings.bearer_token,
        observation=settings.observe_tokens,
        header_limits=HeaderLimits(settings.max_headers, settings.max_header_bytes),
        dropped_headers=choose_priority_rules(settings).dropped_headers,
    )


def create_splits(settings: Settings) -> Splits:
    """Return how engines split requests, as it is set.

    Raises:
        SettingInvalid: the file of a key cannot be read.
    """
    return Splits(
        default=settings.kv_connector,
        nixl_means=settings.nixl_means,
        rules=SplitRules(
            settings.rewrite_remote_host,
            settings.leg_order,
            0
            if settings.pass_token_ids is TokenIds.OFF
            else settings.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
            read_key("PDROUTER_TRTLLM_AUTH_KEY_FILE", settings.trtllm_auth_key_file),
            settings.trtllm_machine_id,
            settings.trtllm_order,
            settings.sglang_split_n,
        ),
    )
