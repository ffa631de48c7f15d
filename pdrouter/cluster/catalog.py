"""Builds views from single changes: only what has changed is sorted anew."""

from collections import defaultdict
from itertools import chain
from types import MappingProxyType

from pdrouter.cluster.kube_objects import Adapter
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView, ModelPods

_Key = tuple[str, str]
"""Namespace, and name of a model or an adapter."""


class Catalog:
    """The pods and adapters of a cluster, as they come and go."""

    def __init__(self, *, merge_namespaces: bool) -> None:
        """Start without pods.

        Args:
            merge_namespaces: whether the same model name in several namespaces is one model.
                Otherwise requests say `namespace/name` where the name alone is ambiguous.
        """
        self._merge_namespaces = merge_namespaces
        self._pods: dict[str, Pod] = {}
        self._groups: defaultdict[_Key, dict[str, Pod]] = defaultdict(dict)
        self._named: defaultdict[_Key, dict[str, Pod]] = defaultdict(dict)
        self._sorted: dict[_Key, ModelPods] = {}
        self._adapters: dict[str, Adapter] = {}
        self._sorted_adapters: dict[str, ModelPods] = {}

    def put_pod(self, pod: Pod) -> None:
        """Add a pod, or replace what was known of the one with its UID."""
        if self._pods.get(pod.uid) == pod:
            # Most updates of a pod, and all of a new list, say nothing new.
            return
        self.drop_pod(pod.uid)
        self._pods[pod.uid] = pod
        self._groups[pod.namespace, pod.model][pod.uid] = pod
        self._named[pod.namespace, pod.name][pod.uid] = pod
        self._unsort(pod)

    def drop_pod(self, uid: str) -> None:
        """Remove a pod; one that is not there is no matter."""
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        _remove(self._groups, (pod.namespace, pod.model), uid)
        _remove(self._named, (pod.namespace, pod.name), uid)
        self._unsort(pod)

    def _unsort(self, pod: Pod) -> None:
        self._sorted.pop((pod.namespace, pod.model), None)
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

    def build(self) -> ClusterView:
        """Return the view of what there is now."""
        for key, group in self._groups.items():
            if key not in self._sorted:
                self._sorted[key] = ModelPods.group(key[1], group.values())
        by_key = {key: self._sorted[key] for key in self._groups}
        for uid, adapter in self._adapters.items():
            if uid not in self._sorted_adapters:
                pods = self._find_adapter_pods(adapter)
                self._sorted_adapters[uid] = ModelPods.group(adapter.name, pods)
            # An adapter under the name of its base model adds nothing to it.
            if self._sorted_adapters[uid].pods:
                by_key.setdefault((adapter.namespace, adapter.name), self._sorted_adapters[uid])
        return self._name(by_key)

    def _find_adapter_pods(self, adapter: Adapter) -> list[Pod]:
        """Return the pods of an adapter.

        Where only prefill pods have loaded it, its requests are decoded by the base model's decode
        pods of the same rolesets.
        """
        homes = (self._named.get((adapter.namespace, name), {}) for name in adapter.instances)
        pods = [pod for home in homes for pod in home.values()]
        if any(pod.role is not Role.PREFILL for pod in pods):
            return pods
        rolesets = {pod.pairing for pod in pods}
        base = adapter.base_model or next((pod.model for pod in pods), "")
        return pods + [
            pod
            for pod in self._groups.get((adapter.namespace, base), {}).values()
            if pod.role is Role.DECODE and pod.pairing in rolesets
        ]

    def _name(self, by_key: dict[_Key, ModelPods]) -> ClusterView:
        namespaces: defaultdict[str, list[str]] = defaultdict(list)
        for namespace, name in by_key:
            namespaces[name].append(namespace)
        models: dict[str, ModelPods] = {}
        ambiguous: dict[str, tuple[str, ...]] = {}
        for name, homes in namespaces.items():
            if len(homes) == 1:
                models[name] = by_key[homes[0], name]
            elif self._merge_namespaces:
                models[name] = ModelPods.group(
                    name, (pod for home in homes for pod in by_key[home, name].pods)
                )
            else:
                ambiguous[name] = tuple(sorted(f"{home}/{name}" for home in homes))
        names = (*models, *chain.from_iterable(ambiguous.values()))
        for (namespace, name), pods in by_key.items():
            models.setdefault(f"{namespace}/{name}", pods)
        return ClusterView(
            MappingProxyType(models),
            tuple(self._pods.values()),
            names,
            MappingProxyType(ambiguous),
        )


def _remove(groups: defaultdict[_Key, dict[str, Pod]], key: _Key, uid: str) -> None:
    group = groups[key]
    del group[uid]
    if not group:
        del groups[key]
