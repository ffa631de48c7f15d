"""Pods and adapters from Kubernetes."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Generic, TypeVar

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.kubernetes.api import (
    KubeApi,
    connect_by_kubeconfig,
    connect_in_cluster,
    find_own_namespace,
)
from pdrouter.cluster.kubernetes.objects import (
    KubeModelAdapter,
    KubeNamespace,
    KubePod,
    PodRules,
    read_adapter,
)
from pdrouter.cluster.kubernetes.reflector import (
    DEFAULT_TIMING,
    Reflected,
    Reflector,
    ReflectorTiming,
)
from pdrouter.cluster.kubernetes.router_service import EndpointSlice, Replicas, RouterService
from pdrouter.cluster.kubernetes.routes import HttpRoutes
from pdrouter.cluster.pods import Pod
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.revisions import DEFAULT_PATIENCE_S
from pdrouter.cluster.source import ALL_NAMESPACES
from pdrouter.cluster.view import PodCache

T = TypeVar("T", bound=Reflected)
log = logging.getLogger(__name__)

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
        patience_s: float = DEFAULT_PATIENCE_S,
        routers: RouterService | None = None,
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
            patience_s: seconds after which nothing more is expected of an update under way.
            routers: where the replicas of the router are found; None not to look for them.
            random: source of jitter.
        """
        self._api = api
        self._cache = cache
        self.routes = routes
        self.catalog = Catalog(
            merge_namespaces=merge_namespaces,
            model_namespaces=rules.model_namespaces,
            namespaces=[each for each in namespaces if each != ALL_NAMESPACES],
            patience_s=patience_s,
        )
        self._flush: asyncio.TimerHandle | None = None
        self._refresh: asyncio.TimerHandle | None = None
        self._rules = rules
        self._reflectors: dict[
            str,
            Reflector[KubePod]
            | Reflector[KubeModelAdapter]
            | Reflector[KubeNamespace]
            | Reflector[EndpointSlice],
        ] = {}
        self._pod_owners: dict[str, _Sink[KubePod]] = {}
        self._adapter_owners: dict[str, _Sink[KubeModelAdapter]] = {}
        for namespace in namespaces:
            self._reflect_namespace(namespace, selectors, timing, random)
        if ALL_NAMESPACES in namespaces:
            self._reflect_namespaces(timing, random)
        if routers is not None:
            self._reflect_routers(routers, timing, random)

    def _reflect_namespace(
        self,
        namespace: str,
        selectors: Sequence[str],
        timing: ReflectorTiming,
        random: Random | None,
    ) -> None:
        scope = "" if namespace == ALL_NAMESPACES else f"/namespaces/{namespace}"
        for selector in selectors:
            self._reflect_pods(f"/api/v1{scope}/pods", selector, timing, random)
        path = f"/apis/model.aibrix.ai/v1alpha1{scope}/modeladapters"
        self._reflect_adapters(path, timing, random)

    def _reflect_pods(
        self, path: str, selector: str, timing: ReflectorTiming, random: Random | None
    ) -> None:
        sink = _Sink(self._pod_owners, self._store_pod, self.catalog.drop_ranks, self._note_change)
        self._reflectors[f"{path}?{selector}"] = Reflector(
            self._api, path, selector, KubePod, sink, timing=timing, random=random
        )

    def _reflect_adapters(self, path: str, timing: ReflectorTiming, random: Random | None) -> None:
        sink = _Sink(
            self._adapter_owners, self._store_adapter, self.catalog.drop_adapter, self._note_change
        )
        self._reflectors[path] = Reflector(
            self._api,
            path,
            "",
            KubeModelAdapter,
            sink,
            optional=True,
            timing=timing,
            random=random,
        )

    def _reflect_namespaces(self, timing: ReflectorTiming, random: Random | None) -> None:
        """Learn which namespaces there are; where that is forbidden, from their pods alone."""
        path = "/api/v1/namespaces"
        sink = _Sink[KubeNamespace]({}, self._store_namespace, _keep, self._note_change)
        self._reflectors[path] = Reflector(
            self._api,
            path,
            "",
            KubeNamespace,
            sink,
            optional=True,
            timing=timing,
            random=random,
        )

    def _reflect_routers(
        self, routers: RouterService, timing: ReflectorTiming, random: Random | None
    ) -> None:
        self._reflectors[routers.path] = Reflector(
            self._api,
            routers.path,
            routers.selector,
            EndpointSlice,
            Replicas(routers.group, self._note_change),
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
            for timer in (self._flush, self._refresh):
                if timer is not None:
                    timer.cancel()

    def _store_pod(self, thing: KubePod) -> bool:
        pods = self._rules.read_ranks(thing)
        if not pods:
            return False
        news = self.catalog.put_ranks(thing.metadata.uid, pods)
        if news and (pods[0].refused or pods[0].unsupported):
            _report_unusable(pods[0])
        return True

    def _store_adapter(self, thing: KubeModelAdapter) -> bool:
        self.catalog.put_adapter(thing.metadata.uid, read_adapter(thing))
        return True

    def _store_namespace(self, thing: KubeNamespace) -> bool:
        self.catalog.put_namespace(thing.metadata.name)
        return True

    def _note_change(self) -> None:
        """Make a new view soon, once everything has been listed."""
        if self._flush is None and self._is_synced():
            self._flush = asyncio.get_running_loop().call_later(_SETTLE_S, self._publish)

    def _is_synced(self) -> bool:
        return all(reflector.stats.synced for reflector in self._reflectors.values())

    def _publish(self) -> None:
        self._flush = None
        now = time.monotonic()
        view = self.catalog.build(now)
        if not (self._cache.synced or view.pods):
            fields = {"watches": list(self._reflectors), "setting": "PDROUTER_NAMESPACES"}
            log.warning(
                "there are no pods of engines where they are watched", extra={"fields": fields}
            )
        self._cache.publish(view, synced=True)
        self._refresh_in(self.catalog.find_next_change(now))

    def _refresh_in(self, seconds: float | None) -> None:
        """Make a new view after a time, for one that changes by itself."""
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._refresh = loop.call_later(seconds + _SETTLE_S, self._note_change)


def _keep(uid: str) -> None:
    """Forget nothing of a namespace that has gone: its name stays its own."""


def _report_unusable(pod: Pod) -> None:
    fields = {
        "namespace": pod.namespace,
        "pod": pod.name,
        "model": pod.model,
        "reason": pod.obstacle if pod.refused else pod.unsupported,
    }
    message = "a pod is refused" if pod.refused else "a pod cannot be served"
    log.warning(message, extra={"fields": fields})


class _Sink(Generic[T]):
    """Takes the objects of one reflector, and remembers which they are.

    An object whose labels change may leave one selector and enter another, in any order: it belongs
    to the reflector that has seen it last.
    """

    def __init__(
        self,
        owners: dict[str, "_Sink[T]"],
        store: Callable[[T], bool],
        forget: Callable[[str], None],
        note_change: Callable[[], None],
    ) -> None:
        """Set up the sink.

        Args:
            owners: sinks by the UIDs of their objects, for all sinks of this kind.
            store: takes an object; returns whether it is of interest.
            forget: forgets the object with a UID.
            note_change: called after each change.
        """
        self._owners = owners
        self._store = store
        self._forget_stored = forget
        self._note_change = note_change

    def put(self, thing: T) -> None:
        uid = thing.metadata.uid
        if self._store(thing):
            self._owners[uid] = self
            self._note_change()
        else:
            self._forget(uid)

    def drop(self, thing: T) -> None:
        self._forget(thing.metadata.uid)

    def retain(self, uids: Collection[str]) -> None:
        mine = [uid for uid, owner in self._owners.items() if owner is self]
        for uid in mine:
            if uid not in uids:
                self._forget(uid)
        self._note_change()

    def _forget(self, uid: str) -> None:
        if self._owners.get(uid) is self:
            del self._owners[uid]
            self._forget_stored(uid)
            self._note_change()


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
    patience_s: float = DEFAULT_PATIENCE_S,
    routers: RouterService | None = None,
    timing: ReflectorTiming = DEFAULT_TIMING,
) -> KubernetesPods:
    """Return the source for an API server.

    Raises:
        KubeConfigInvalid: no namespaces are given, and the router's own cannot be found.

    Args:
        cache: what to feed.
        rules: what pods may say of themselves.
        kubeconfig: file that says how to reach the API server; None for the service account of the
            pod that this process runs in.
        namespaces: namespaces to look into; `*` for all, none for the router's own.
        selectors: label selectors; a pod that any of them selects is taken.
        merge_namespaces: whether the same model name in several namespaces is one model.
        httproute_namespace: where the models' own HTTPRoutes are.
        httproute_ttl_s: seconds for which the status of such a route is remembered.
        patience_s: seconds after which nothing more is expected of an update under way.
        routers: where the replicas of the router are found; None not to look for them.
        timing: how long to wait for what.
    """
    api = KubeApi(connect_in_cluster if kubeconfig is None else connect_by_kubeconfig(kubeconfig))
    return KubernetesPods(
        api,
        cache,
        rules,
        HttpRoutes(api, httproute_namespace, httproute_ttl_s),
        namespaces=namespaces or (find_own_namespace(kubeconfig),),
        selectors=selectors,
        merge_namespaces=merge_namespaces,
        timing=timing,
        patience_s=patience_s,
        routers=routers,
    )
