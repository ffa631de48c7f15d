"""The replicas of the router: the endpoints of the Service that stands before them."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from pdrouter.cluster.kubernetes.api import find_own_namespace
from pdrouter.cluster.kubernetes.objects import ObjectMeta
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.settings import Settings


class RouterService(NamedTuple):
    """Where the replicas of the router are found.

    Attributes:
        group: is told which there are.
        name: name of the Service before them.
        namespace: its namespace, which is theirs.
    """

    group: RouterGroup
    name: str
    namespace: str

    @property
    def path(self) -> str:
        """Path of the EndpointSlices."""
        return f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices"

    @property
    def selector(self) -> str:
        """Which of them are the Service's."""
        return f"kubernetes.io/service-name={self.name}"


class _Target(msgspec.Struct, frozen=True):
    name: str = ""


class _Conditions(msgspec.Struct, frozen=True):
    # Not known counts as ready: so the API says.
    ready: bool | None = None


class _Endpoint(msgspec.Struct, frozen=True, rename="camel"):
    target_ref: _Target | None = None
    conditions: _Conditions = _Conditions()


class EndpointSlice(msgspec.Struct, frozen=True):
    """An EndpointSlice as the API server tells it."""

    metadata: ObjectMeta
    endpoints: list[_Endpoint] | None = None

    def list_names(self, *, ready: bool) -> frozenset[str]:
        """Return the names of the pods in it that are ready, or that are not."""
        return frozenset(
            endpoint.target_ref.name
            for endpoint in self.endpoints or ()
            if endpoint.target_ref is not None and (endpoint.conditions.ready is not False) is ready
        )


class _Names(NamedTuple):
    """Names of the pods in one slice: those that are ready, and those that are not."""

    ready: frozenset[str]
    starting: frozenset[str]


class Replicas:
    """Takes the EndpointSlices of the router's Service, and tells the group who there is.

    A Service has several of them: one for each family of addresses, and for every hundred pods.
    """

    def __init__(self, group: RouterGroup, note_change: Callable[[], None]) -> None:
        """Set up the sink.

        Args:
            group: is told who there is.
            note_change: called after each change, and once all has been listed.
        """
        self._group = group
        self._note_change = note_change
        self._slices: dict[str, _Names] = {}

    def put(self, thing: EndpointSlice) -> None:
        """Take a slice that is new, or has changed."""
        names = _Names(thing.list_names(ready=True), thing.list_names(ready=False))
        self._slices[thing.metadata.uid] = names
        self._tell()

    def drop(self, thing: EndpointSlice) -> None:
        """Forget a slice that is gone."""
        self._slices.pop(thing.metadata.uid, None)
        self._tell()

    def retain(self, uids: Collection[str]) -> None:
        """Forget all slices but these."""
        self._slices = {uid: names for uid, names in self._slices.items() if uid in uids}
        self._tell()

    def _tell(self) -> None:
        slices = self._slices.values()
        ready = frozenset[str]().union(*(names.ready for names in slices))
        starting = frozenset[str]().union(*(names.starting for names in slices))
        self._group.take_replicas(ready, starting)
        self._note_change()


def find_router_service(settings: Settings, group: RouterGroup) -> RouterService | None:
    """Return where the replicas of the router are found; None where they need not be.

    Raises:
        KubeConfigInvalid: the router's own namespace cannot be found.
    """
    if not settings.router_service or settings.replicas > 1:
        return None
    namespace = settings.own_namespace or find_own_namespace(settings.kubeconfig)
    return RouterService(group, settings.router_service, namespace)
