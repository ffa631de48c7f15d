"""What the settings mean to the rooms: their rules, each made from what is set."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

from pdrouter.cluster.endpoints_file import EndpointsFile
from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.pod_addresses import AddressRules, find_own_addresses
from pdrouter.cluster.source import PodSource
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import ENGINES
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.tls import TlsFiles
from pdrouter.load.failures import EjectionRules
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.registry import create_strategies
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.serving.engine_client import ClientLimits
from pdrouter.serving.policy import DispatchPolicy
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import CONNECTOR_NAMES


def create_source(
    settings: Settings, cache: PodCache, on_reload: Callable[[bool], None]
) -> PodSource:
    """Return the source of pods that the settings name.

    Raises:
        SettingInvalid: they name none.
    """
    if settings.endpoints is not None:
        return EndpointsFile(
            settings.endpoints,
            cache,
            engines=ENGINES,
            kv_connectors=CONNECTOR_NAMES,
            poll_interval_s=settings.endpoints_poll_s,
            on_reload=on_reload,
        )
    if settings.kubernetes:
        # Loaded when needed: the Kubernetes client costs 0.2 s and 12 MB.
        from pdrouter.cluster.kubernetes.api import find_kubeconfig  # noqa: PLC0415
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
        )
    raise SettingInvalid("there is no source of pods: give --endpoints FILE or --kubernetes")


def create_router(settings: Settings, state: RoutingState) -> Router:
    """Return what chooses the pods.

    Args:
        settings: what the operator decided.
        state: the pods' condition.
    """
    strategies = create_strategies(
        settings.prefill_policy, settings.decode_policy, choose_policy_options(settings)
    )
    rules = RoutingRules(settings.aggregation, settings.handover_s, settings.max_wait_s)
    return Router(strategies, state, rules)


def choose_policy_options(settings: Settings) -> PolicyOptions:
    """Return what is set of `pd` and its policies."""
    return PolicyOptions(
        compute_weight=settings.compute_weight,
        others_weight=settings.others_weight,
        bucketing=settings.bucketing,
        prefill_imbalance_spread=settings.prefill_imbalance_spread,
        decode_imbalance_spread=settings.decode_imbalance_spread,
        decode_throughput_spread=settings.decode_throughput_spread,
        decode_score_ratio=settings.decode_score_ratio,
        standard_deviation_factor=settings.standard_deviation_factor,
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
    )


def choose_ejection_rules(settings: Settings) -> EjectionRules:
    """Return what is set of the ejection of pods that fail."""
    return EjectionRules(
        after=settings.eject_after,
        backoff_s=settings.eject_s,
        longest_s=max(settings.eject_s, settings.eject_longest_s),
        share=settings.eject_share,
    )


def _create_pod_rules(settings: Settings) -> PodRules:
    networks = tuple(map(ip_network, settings.pod_networks))
    own = find_own_addresses(settings.own_addresses, in_pod=settings.kubeconfig is None)
    return PodRules(
        ENGINES,
        CONNECTOR_NAMES,
        AddressRules(networks, own),
        ModelNamespaces(settings.model_namespaces),
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
