"""Pods and adapters from Kubernetes."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.http_routes import HttpRoutes
from pdrouter.cluster.kube_api import KubeApi, connect_by_kubeconfig, connect_in_cluster
from pdrouter.cluster.kube_objects import (
    Adapter,
    KubeModelAdapter,
    KubePod,
    PodRules,
    read_adapter,
)
from pdrouter.cluster.reflector import DEFAULT_TIMING, Reflector, ReflectorTiming
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache

_SETTLE_S = 0.01
"""Changes within this time make one new view: a rollout changes many pods at once."""


class KubernetesPods:
    """Feeds a cache from the API server.

    Attributes:
        routes: checks the models' own HTTPRoutes.
        catalog: what is known of the cluster.
    """

    def __init__(
        self,
        api: KubeApi,
        cache: PodCache,
        rules: PodRules,
        routes: HttpRoutes,
        *,
        namespaces: Sequence[str],
        selectors: Sequence[str],
        merge_namespaces: bool,
        timing: ReflectorTiming,
        random: Random | None = None,
    ) -> None:
        """Set up the reflectors; nothing is sent yet.

        Args:
            api: the API server.
            cache: what to feed.
            rules: what pods may say of themselves.
            routes: checks the models' own HTTPRoutes.
            namespaces: namespaces to look into; `*` for all.
            selectors: label selectors; a pod that any of them selects is taken.
            merge_namespaces: whether the same model name in several namespaces is one model.
            timing: how long to wait for what.
            random: source of jitter.
        """
        self._api = api
        self._cache = cache
        self.routes = routes
        self.catalog = Catalog(merge_namespaces=merge_namespaces)
        self._flush: asyncio.TimerHandle | None = None
        owners: dict[str, _PodSink] = {}
        self._reflectors: dict[str, Reflector[KubePod] | Reflector[KubeModelAdapter]] = {}
        adapters: dict[tuple[str, str], Adapter] = {}
        for namespace in namespaces:
            scope = "" if namespace == "*" else f"/namespaces/{namespace}"
            for selector in selectors:
                pods_path = f"/api/v1{scope}/pods"
                self._reflectors[f"{pods_path}?{selector}"] = Reflector(
                    api,
                    pods_path,
                    selector,
                    KubePod,
                    _PodSink(self, rules, owners),
                    timing=timing,
                    random=random,
                )
            adapters_path = f"/apis/model.aibrix.ai/v1alpha1{scope}/modeladapters"
            self._reflectors[adapters_path] = Reflector(
                api,
                adapters_path,
                "",
                KubeModelAdapter,
                _AdapterSink(self, adapters),
                optional=True,
                timing=timing,
                random=random,
            )

    @property
    def stats(self) -> Mapping[str, ReflectorStats]:
        """What the reflectors have met, by path and selector."""
        return {name: reflector.stats for name, reflector in self._reflectors.items()}

    async def __aenter__(self) -> "KubernetesPods":
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._api.__aexit__(kind, error, trace)

    async def watch(self) -> None:
        """Feed the cache until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for reflector in self._reflectors.values():
                    tasks.create_task(reflector.run())
        finally:
            if self._flush is not None:
                self._flush.cancel()

    def note_change(self) -> None:
        """Make a new view soon."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_SETTLE_S, self._publish)

    def _publish(self) -> None:
        self._flush = None
        synced = all(reflector.stats.synced for reflector in self._reflectors.values())
        self._cache.publish(self.catalog.build(), synced=synced)


class _PodSink:
    """Takes the pods of one selector.

    A pod whose labels change may leave one selector and enter another, in any order: it belongs to
    the one that has seen it last.
    """

    def __init__(
        self, source: KubernetesPods, rules: PodRules, owners: dict[str, "_PodSink"]
    ) -> None:
        self._source = source
        self._rules = rules
        self._owners = owners

    def replace(self, objects: Sequence[KubePod]) -> None:
        listed = {thing.metadata.uid for thing in objects}
        gone = [uid for uid, owner in self._owners.items() if owner is self and uid not in listed]
        for uid in gone:
            self._forget(uid)
        for thing in objects:
            self.put(thing)
        self._source.note_change()

    def put(self, thing: KubePod) -> None:
        uid = thing.metadata.uid
        pod = self._rules.read(thing)
        if pod is None:
            self._forget(uid)
        else:
            self._owners[uid] = self
            self._source.catalog.put_pod(pod)
            self._source.note_change()

    def drop(self, thing: KubePod) -> None:
        self._forget(thing.metadata.uid)

    def _forget(self, uid: str) -> None:
        if self._owners.get(uid) is self:
            del self._owners[uid]
            self._source.catalog.drop_pod(uid)
            self._source.note_change()


class _AdapterSink:
    """Takes the adapters of one path."""

    def __init__(self, source: KubernetesPods, adapters: dict[tuple[str, str], Adapter]) -> None:
        self._source = source
        self._adapters = adapters
        self._mine: set[tuple[str, str]] = set()

    def replace(self, objects: Sequence[KubeModelAdapter]) -> None:
        for key in self._mine:
            self._adapters.pop(key, None)
        self._mine.clear()
        for thing in objects:
            self._add(thing)
        self._update()

    def put(self, thing: KubeModelAdapter) -> None:
        self._add(thing)
        self._update()

    def drop(self, thing: KubeModelAdapter) -> None:
        key = (thing.metadata.namespace, thing.metadata.name)
        self._mine.discard(key)
        self._adapters.pop(key, None)
        self._update()

    def _add(self, thing: KubeModelAdapter) -> None:
        adapter = read_adapter(thing)
        key = (adapter.namespace, adapter.name)
        self._mine.add(key)
        self._adapters[key] = adapter

    def _update(self) -> None:
        self._source.catalog.replace_adapters(self._adapters.values())
        self._source.note_change()


def create_kubernetes_source(
    cache: PodCache,
    rules: PodRules,
    *,
    kubeconfig: Path | None,
    namespaces: Sequence[str],
    selectors: Sequence[str],
    merge_namespaces: bool,
    httproute_namespace: str,
    httproute_ttl_s: float,
    timing: ReflectorTiming = DEFAULT_TIMING,
) -> KubernetesPods:
    """Return the source for an API server.

    Args:
        cache: what to feed.
        rules: what pods may say of themselves.
        kubeconfig: file that says how to reach the API server; None for the service account of the
            pod that this process runs in.
        namespaces: namespaces to look into; `*` for all.
        selectors: label selectors; a pod that any of them selects is taken.
        merge_namespaces: whether the same model name in several namespaces is one model.
        httproute_namespace: where the models' own HTTPRoutes are.
        httproute_ttl_s: seconds for which the status of such a route is remembered.
        timing: how long to wait for what.
    """
    api = KubeApi(connect_in_cluster if kubeconfig is None else connect_by_kubeconfig(kubeconfig))
    return KubernetesPods(
        api,
        cache,
        rules,
        HttpRoutes(api, httproute_namespace, httproute_ttl_s),
        namespaces=namespaces,
        selectors=selectors,
        merge_namespaces=merge_namespaces,
        timing=timing,
    )
