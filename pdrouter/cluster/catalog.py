"""Builds views from single changes: only what has changed is sorted anew."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pdrouter.cluster.kubernetes.objects import Adapter
from pdrouter.cluster.model_namespaces import ANY_NAMESPACE, ModelNamespaces
from pdrouter.cluster.names import NameClaims, name_models
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.revisions import DEFAULT_PATIENCE_S, Key, RevisionMatcher
from pdrouter.cluster.view import ClusterView, ModelPods


class Catalog:
    """The pods and adapters of a cluster, as they come and go."""

    def __init__(
        self,
        *,
        merge_namespaces: bool,
        model_namespaces: ModelNamespaces = ANY_NAMESPACE,
        namespaces: Iterable[str] = (),
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> None:
        """Start without pods.

        Args:
            merge_namespaces: whether the same model name in several namespaces is one model.
                Otherwise requests say `namespace/name` where the name alone is ambiguous.
            model_namespaces: which namespaces may serve which models and adapters.
            namespaces: namespaces that are known without being told.
            patience_s: seconds after which prefill and decode pods that have no image in common
                any more are taken to be different on purpose.
        """
        self._merge_namespaces = merge_namespaces
        self._model_namespaces = model_namespaces
        # What was a namespace once stays one: its name must not become somebody else's.
        self._namespaces = set(namespaces)
        self._claims = NameClaims()
        self._revisions = RevisionMatcher(patience_s)
        self._pods: dict[str, Pod] = {}
        self._ranks: dict[str, frozenset[str]] = {}
        self._groups: defaultdict[Key, dict[str, Pod]] = defaultdict(dict)
        self._named: defaultdict[Key, dict[str, Pod]] = defaultdict(dict)
        self._matched: dict[str, Pod] = {}
        self._sorted: dict[Key, ModelPods] = {}
        self._adapters: dict[str, Adapter] = {}
        self._sorted_adapters: dict[str, ModelPods] = {}

    def put_namespace(self, name: str) -> None:
        """Note that there is a namespace."""
        self._namespaces.add(name)

    def put_ranks(self, uid: str, pods: Sequence[Pod]) -> bool:
        """Add the ranks of a pod, or replace what was known of the one with that UID.

        Returns:
            Whether that is news.
        """
        uids = frozenset(pod.uid for pod in pods)
        gone = self._ranks.get(uid, uids) - uids
        for each in gone:
            self.drop_pod(each)
        self._ranks[uid] = uids
        news = [self.put_pod(pod) for pod in pods]
        return any(news) or bool(gone)

    def drop_ranks(self, uid: str) -> None:
        """Remove a pod with all its ranks; one that is not there is no matter."""
        for each in self._ranks.pop(uid, ()):
            self.drop_pod(each)

    def put_pod(self, pod: Pod) -> bool:
        """Add a pod, or replace what was known of the one with its UID.

        Returns:
            Whether that is news: most updates of a pod, and all of a new list, say nothing new.
        """
        if self._pods.get(pod.uid) == pod:
            return False
        self.drop_pod(pod.uid)
        self._pods[pod.uid] = pod
        self._namespaces.add(pod.namespace)
        if not pod.refused:
            self._groups[pod.namespace, pod.model][pod.uid] = pod
            self._named[pod.namespace, pod.own_name][pod.uid] = pod
            self._unsort(pod)
        return True

    def drop_pod(self, uid: str) -> None:
        """Remove a pod; one that is not there is no matter."""
        pod = self._pods.pop(uid, None)
        if pod is None or pod.refused:
            return
        self._matched.pop(uid, None)
        _remove(self._groups, (pod.namespace, pod.model), uid)
        _remove(self._named, (pod.namespace, pod.own_name), uid)
        self._unsort(pod)

    def _unsort(self, pod: Pod) -> None:
        self._sorted.pop((pod.namespace, pod.model), None)
        self._unsort_adapters(pod)

    def _unsort_adapters(self, pod: Pod) -> None:
        for uid in [uid for uid in self._sorted_adapters if self._adapters[uid].concerns(pod)]:
            del self._sorted_adapters[uid]

    def put_adapter(self, uid: str, adapter: Adapter) -> None:
        """Add an adapter, or replace what was known of the one with its UID."""
        self._adapters[uid] = adapter
        self._sorted_adapters.pop(uid, None)

    def drop_adapter(self, uid: str) -> None:
        """Remove an adapter; one that is not there is no matter."""
        self._adapters.pop(uid, None)
        self._sorted_adapters.pop(uid, None)

    def build(self, now: float) -> ClusterView:
        """Return the view of what there is now.

        Args:
            now: the time, in seconds.
        """
        allow = self._model_namespaces.allow
        groups = {key: group for key, group in self._group(now).items() if allow(*key)}
        self._claims.update(groups, now)
        names = name_models(
            groups, self._claims, self._namespaces, merge_namespaces=self._merge_namespaces
        )
        pods = tuple(self._matched.get(uid, pod) for uid, pod in self._pods.items())
        return ClusterView.of(names.models, pods, names.listed, names.ambiguous)

    def find_next_change(self, now: float) -> float | None:
        """Return the seconds after which a view is another one, though nothing else has changed.

        Args:
            now: the time, in seconds.

        Returns:
            None if time alone changes nothing.
        """
        ends = [max(0.0, end - now) for end in self._revisions.find_ends().values()]
        claims_end = self._claims.find_next_end(now)
        return min(ends if claims_end is None else (*ends, claims_end), default=None)

    def _group(self, now: float) -> dict[Key, ModelPods]:
        """Return the pods of all models and adapters."""
        self._revisions.forget_others(self._groups)
        for key, end in self._revisions.find_ends().items():
            if end <= now:
                self._sorted.pop(key, None)
        for key, group in self._groups.items():
            if key not in self._sorted:
                self._sorted[key] = ModelPods.group(key[1], self._match(key, group, now))
        by_key = {key: self._sorted[key] for key in self._groups}
        for uid, adapter in self._adapters.items():
            if uid not in self._sorted_adapters:
                pods = self._find_adapter_pods(adapter)
                self._sorted_adapters[uid] = ModelPods.group(adapter.name, pods)
            # An adapter under the name of its base model adds nothing to it.
            if self._sorted_adapters[uid].pods:
                by_key.setdefault((adapter.namespace, adapter.name), self._sorted_adapters[uid])
        return by_key

    def _match(self, key: Key, group: dict[str, Pod], now: float) -> list[Pod]:
        """Return the pods of a model with their revisions; adapters on them are sorted anew."""
        matched = settle_roles(self._revisions.match(key, group.values(), now))
        known = self._matched
        for pod in [pod for pod in matched if known.get(pod.uid) is not pod]:
            known[pod.uid] = pod
            self._unsort_adapters(pod)
        return matched

    def _find_adapter_pods(self, adapter: Adapter) -> list[Pod]:
        """Return the pods of an adapter.

        Where only prefill pods have loaded it, its requests are decoded by the base model's decode
        pods of the same rolesets.
        """
        homes = (self._named.get((adapter.namespace, name), {}) for name in adapter.instances)
        pods = [self._matched[uid] for home in homes for uid in home]
        if any(pod.role not in (Role.PREFILL, Role.ENCODE) for pod in pods):
            return pods
        rolesets = {pod.pairing for pod in pods}
        base = adapter.base_model or next((pod.model for pod in pods), "")
        return pods + [
            pod
            for uid in self._groups.get((adapter.namespace, base), ())
            if (pod := self._matched[uid]).role is Role.DECODE and pod.pairing in rolesets
        ]


def settle_roles(pods: list[Pod]) -> list[Pod]:
    """Return the pods of a model; where none is for one leg, each serves whole requests.

    A role that is called otherwise is that of a helper only beside those of the two legs.
    """
    if any(pod.role in (Role.PREFILL, Role.DECODE) for pod in pods):
        return pods
    return [replace(pod, role=Role.BOTH) if pod.role is Role.OTHER else pod for pod in pods]


def _remove(groups: defaultdict[Key, dict[str, Pod]], key: Key, uid: str) -> None:
    group = groups[key]
    del group[uid]
    if not group:
        del groups[key]
