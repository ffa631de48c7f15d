"""The source of pods that the settings name."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

from pdrouter.cluster.endpoints_file import EndpointsFile
from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.pod_addresses import AddressRules, find_own_addresses
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.source import PodSource
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import WIRES
from pdrouter.settings import SettingInvalid, Settings


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
        from pdrouter.cluster.kubernetes.claims import SELECTOR  # noqa: PLC0415
        from pdrouter.cluster.kubernetes.router_service import find_router_service  # noqa: PLC0415
        from pdrouter.cluster.kubernetes.source import create_kubernetes_source  # noqa: PLC0415

        settings = replace(settings, kubeconfig=find_kubeconfig(settings.kubeconfig))
        return create_kubernetes_source(
            cache,
            _create_pod_rules(settings),
            kubeconfig=settings.kubeconfig,
            namespaces=settings.namespaces or tuple(filter(None, [settings.own_namespace])),
            selectors=(*settings.pod_selectors, *([SELECTOR] if settings.model_claims else ())),
            merge_namespaces=settings.merge_namespaces,
            httproute_namespace=settings.httproute_namespace,
            httproute_ttl_s=settings.httproute_ttl_s,
            patience_s=settings.rollout_patience_s,
            routers=find_router_service(settings, group),
        )
    raise SettingInvalid("there is no source of pods: give --endpoints FILE or --kubernetes")


def _create_pod_rules(settings: Settings) -> PodRules:
    own = find_own_addresses(settings.own_addresses, in_pod=settings.kubeconfig is None)
    return PodRules(
        WIRES,
        AddressRules(tuple(map(ip_network, settings.pod_networks)), own),
        ModelNamespaces(settings.model_namespaces),
        match_revisions=settings.match_revisions,
        topology_labels=settings.topology_labels,
        hardware_labels=settings.hardware_labels,
        model_claims=settings.model_claims,
    )
