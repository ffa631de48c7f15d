"""Which names requests may use, and whose pods they stand for, where namespaces share a router.

A namespace is somebody's: nobody else may take a name from it, or make it useless, by what they
write on pods of their own.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from pdrouter.cluster.pods import Claim, Pod
from pdrouter.cluster.revisions import Key
from pdrouter.cluster.view import ModelPods

LINGER_S = 60.0
"""How long a namespace keeps a name whose last pod has gone: the next ones may be on their way."""


class Names(NamedTuple):
    """The names of one moment.

    Attributes:
        models: pods by every name that requests may use.
        listed: one name for each model and adapter.
        ambiguous: names that stand for models of several namespaces, with the names to use instead.
    """

    models: Mapping[str, ModelPods]
    listed: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]]


class NameClaims:
    """Remembers which namespace has a claim to which name.

    It has one from the first moment that one of its pods is ready, through all times when none is,
    until a while after the last of them has gone.
    """

    def __init__(self) -> None:
        """Start without claims."""
        self._gone_since: dict[Key, float | None] = {}

    def update(self, groups: Mapping[Key, ModelPods], now: float) -> None:
        """Take note of the pods that there are now.

        Args:
            groups: the pods by namespace and name.
            now: the time, in seconds.
        """
        claimed = self._gone_since
        held = {
            key
            for key, group in groups.items()
            if group.claim is Claim.MAKES or (group.claim is Claim.HOLDS and key in claimed)
        }
        for key, since in list(claimed.items()):
            if key in held:
                continue
            if since is None:
                claimed[key] = now
            elif now - since >= LINGER_S:
                del claimed[key]
        claimed.update(dict.fromkeys(held))

    def list_by_name(self) -> Mapping[str, list[str]]:
        """Return the namespaces that have claims, by name."""
        namespaces: defaultdict[str, list[str]] = defaultdict(list)
        for namespace, name in self._gone_since:
            namespaces[name].append(namespace)
        return namespaces

    def find_next_end(self, now: float) -> float | None:
        """Return the seconds until a claim ends if nothing changes; None if none does."""
        since = [since for since in self._gone_since.values() if since is not None]
        return max(0.0, min(since) + LINGER_S - now) if since else None


def name_models(
    groups: Mapping[Key, ModelPods],
    claims: NameClaims,
    namespaces: Collection[str],
    *,
    merge_namespaces: bool,
) -> Names:
    """Find the names of models.

    `namespace/name` is always that namespace's. A name alone belongs to the namespaces that have a
    claim to it; where nobody has one, all pods of the name are not ready yet.

    Args:
        groups: the pods by namespace and name.
        claims: who has a claim, these pods taken note of.
        namespaces: names of namespaces, beside those of the pods. A model's own name may have a
            slash, but none of these in front of it, unless the namespace is its own.
        merge_namespaces: whether the same name in several namespaces is one model.
    """
    models = {f"{namespace}/{name}": group for (namespace, name), group in groups.items()}
    owners = {namespace for namespace, _ in groups} | set(namespaces)
    homes: defaultdict[str, list[str]] = defaultdict(list)
    only_qualified: list[str] = []
    for namespace, name in groups:
        owner, slash, _ = name.partition("/")
        if slash and owner != namespace and owner in owners:
            only_qualified.append(f"{namespace}/{name}")
        else:
            homes[name].append(namespace)
    listed: list[str] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    claimed = claims.list_by_name()
    for name, present in homes.items():
        if name in models:
            # Another model of the namespace is called so in full.
            only_qualified += (f"{namespace}/{name}" for namespace in present)
            continue
        holders = claimed.get(name, [])
        alive = [namespace for namespace in present if namespace in holders] or present
        if len(holders) > 1 and not merge_namespaces:
            ambiguous[name] = tuple(sorted(f"{holder}/{name}" for holder in holders))
            continue
        listed.append(name)
        models[name] = (
            groups[alive[0], name]
            if len(alive) == 1
            else ModelPods.group(name, _join(groups[home, name] for home in alive))
        )
    return Names(
        MappingProxyType(models),
        (*listed, *filter(models.get, chain.from_iterable(ambiguous.values())), *only_qualified),
        MappingProxyType(ambiguous),
    )


def _join(groups: Iterable[ModelPods]) -> Iterable[Pod]:
    return chain.from_iterable(group.pods for group in groups)
