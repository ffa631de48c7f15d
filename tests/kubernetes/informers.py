"""Running our informer in tests, and waiting for what it should come to know."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.kubernetes.reflector import ReflectorTiming
from pdrouter.cluster.kubernetes.router_service import RouterService
from pdrouter.cluster.kubernetes.source import KubernetesPods, create_kubernetes_source
from pdrouter.cluster.view import PodCache

PATIENCE_S = 30.0
SELECTORS = ("role-name", "!role-name,model.aibrix.ai/name")
RULES = PodRules({"vllm": ("nixl", "shfs", "neuron-legacy")})
FAST = ReflectorTiming(
    list_s=5.0,
    silence_s=1.5,
    watch_s=(60.0, 60.0),
    relist_s=(600.0, 600.0),
    backoff_s=0.05,
    backoff_most_s=0.2,
    unreachable_most_s=0.1,
    absent_s=0.2,
)


class Informer:
    """A running informer and what it knows."""

    def __init__(self, source: KubernetesPods, cache: PodCache) -> None:
        self.source = source
        self.cache = cache

    @property
    def addresses(self) -> Mapping[str, str]:
        """Addresses of the ready pods by name."""
        return {pod.name: pod.address for pod in self.cache.view.pods if pod.ready}

    @property
    def states(self) -> Mapping[str, str]:
        """States of all pods by name."""
        return {pod.name: pod.state for pod in self.cache.view.pods}

    def restarts(self, cause: str) -> int:
        """How often a watch or list of pods ended for this cause."""
        return sum(stats.restarts[cause] for stats in self.source.stats.values())

    @property
    def lists(self) -> int:
        """Complete lists of the first selector."""
        return next(iter(self.source.stats.values())).lists

    async def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until something holds."""
        await wait_for(condition)


async def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def run_informer(
    kubeconfig: Path,
    *,
    namespaces: tuple[str, ...] = ("default",),
    selectors: tuple[str, ...] = SELECTORS,
    merge_namespaces: bool = False,
    rules: PodRules = RULES,
    timing: ReflectorTiming = FAST,
    synced: bool = True,
    routers: RouterService | None = None,
) -> AsyncIterator[Informer]:
    """Run an informer, from its first sync on unless told otherwise."""
    cache = PodCache()
    source = create_kubernetes_source(
        cache,
        rules,
        kubeconfig=kubeconfig,
        namespaces=namespaces,
        selectors=selectors,
        merge_namespaces=merge_namespaces,
        httproute_namespace="aibrix-system",
        httproute_ttl_s=30.0,
        routers=routers,
        timing=timing,
    )
    async with source:
        watch = asyncio.create_task(source.watch())
        try:
            informer = Informer(source, cache)
            if synced:
                await wait_for(lambda: cache.synced)
            yield informer
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
