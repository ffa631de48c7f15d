"""The objects of one cluster, and every way in which they change."""

import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Protocol

from .failures import ApiError
from .history import History
from .kinds import Kind, Kinds
from .lifecycle import carry_metadata, end_containers, grace_period, is_over
from .objects import Change, Json, Key, Stored, timestamp
from .patches import merge_patch
from .selectors import parse_label_selector


class Schedule(Protocol):
    """Calls a function once, after so many seconds."""

    def __call__(self, delay: float, function: Callable[[], None], /) -> object: ...


class Store:
    """Objects by kind, namespace and name.

    Every method is synchronous: a test may write thousands of objects between two steps of the
    event loop. Manifests that go in and come out are the caller's own.

    Args:
        kinds: what may be stored.
        schedule: runs the end of graceful deletions; without it they end when a test says so.
        termination_delay: seconds from a graceful deletion to the object's end; None is the whole
            grace period.
    """

    def __init__(
        self,
        kinds: Kinds,
        schedule: Schedule | None = None,
        termination_delay: float | None = None,
    ) -> None:
        self.kinds = kinds
        self.history = History()
        self._schedule = schedule
        self._termination_delay = termination_delay
        self._objects: defaultdict[Kind, dict[Key, Stored]] = defaultdict(dict)
        self._observers: list[Callable[[Change], None]] = []
        self._unannounced: deque[Change] = deque()
        self._announcing = False
        for namespace in ("default", "kube-system"):
            self._ensure_namespace(namespace)

    @property
    def resource_version(self) -> int:
        """The version of the last write."""
        return self.history.resource_version

    def compact(self) -> None:
        """Forget the history: watches and exact lists of earlier versions are 410 from now on."""
        self.history.compact()

    def roll_back(self, resource_version: int) -> None:
        """Return to an earlier state and count on from there, as after etcd's restore.

        Nobody is told: clients of a restored cluster see no events either.

        Raises:
            ApiError: 410 if that state was compacted away.
        """
        self._objects = defaultdict(
            dict,
            {
                kind: self.history.state_at(kind, resource_version, present)
                for kind, present in self._objects.items()
            },
        )
        self.history.roll_back(resource_version)

    def observe(self, observer: Callable[[Change], None]) -> Callable[[], None]:
        """Call a function after every write, in the order of the writes; the answer ends that."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    # -- reads ---------------------------------------------------------------------------------

    def get(self, plural: str, name: str, *, namespace: str = "default") -> Json:
        """One object.

        Raises:
            ApiError: 404 if there is none.
        """
        kind = self.kinds.of_plural(plural)
        return self.find(kind, _key(kind, namespace, name)).decode()

    def objects(
        self, plural: str, *, namespace: str | None = None, selector: str = ""
    ) -> list[Json]:
        """The objects of a kind, in one namespace or in all, by namespace and name.

        Raises:
            ApiError: 400 if the label selector cannot be parsed.
        """
        kind, wanted = self.kinds.of_plural(plural), parse_label_selector(selector)
        selected = self.select(
            kind, namespace=namespace, matches=lambda stored: wanted(stored.labels)
        )
        return [stored.decode() for stored in selected]

    def find(self, kind: Kind, key: Key) -> Stored:
        """One object as it is stored.

        Raises:
            ApiError: 404 if there is none.
        """
        stored = self._objects[kind].get(key)
        if stored is None:
            raise ApiError.not_found(kind.qualified, key[1])
        return stored

    def select(
        self,
        kind: Kind,
        *,
        namespace: str | None = None,
        matches: Callable[[Stored], bool] | None = None,
        at: int | None = None,
    ) -> list[Stored]:
        """Objects by namespace and name.

        Args:
            kind: their kind.
            namespace: theirs; None is all.
            matches: whether one is wanted.
            at: the version whose state is read; None is now.

        Raises:
            ApiError: 410 if that state was compacted away.
        """
        present = self._objects[kind]
        state = present if at is None else self.history.state_at(kind, at, present)
        return [
            state[key]
            for key in sorted(state)
            if namespace in (None, key[0]) and (matches is None or matches(state[key]))
        ]

    # -- writes --------------------------------------------------------------------------------

    def create(self, manifest: Json) -> Json:
        """Store a new object, and its namespace if there is none.

        Raises:
            ApiError: 400 for an unknown kind, 409 if the name is taken.
        """
        kind = self.kinds.of_type(manifest.get("apiVersion"), manifest.get("kind"))
        metadata = dict(manifest["metadata"])
        if kind.namespaced:
            metadata.setdefault("namespace", "default")
            self._ensure_namespace(metadata["namespace"])
        if "name" not in metadata and "generateName" in metadata:
            metadata["name"] = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
        key = _key(kind, metadata.get("namespace", ""), metadata["name"])
        if key in self._objects[kind]:
            raise ApiError.already_exists(kind.qualified, key[1])
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", timestamp())
        if "spec" in manifest:
            metadata["generation"] = 1
        return self._write(kind, {**manifest, "metadata": metadata}, None).decode()

    def replace(self, manifest: Json) -> Json:
        """Store another state of an object.

        Raises:
            ApiError: 404 if there is none; 409 if the manifest names another UID or version.
        """
        kind = self.kinds.of_type(manifest.get("apiVersion"), manifest.get("kind"))
        metadata = manifest["metadata"]
        key = _key(kind, metadata.get("namespace", "default"), metadata["name"])
        return self.update(kind, key, lambda _: manifest).decode()

    def patch(self, plural: str, name: str, patch: Json, *, namespace: str = "default") -> Json:
        """Merge a patch (RFC 7386) into an object, its status included.

        Raises:
            ApiError: 404 if there is none; 409 if the patch names another UID or version.
        """
        kind = self.kinds.of_plural(plural)
        key = _key(kind, namespace, name)
        return self.update(kind, key, lambda current: merge_patch(current, patch)).decode()

    def update(self, kind: Kind, key: Key, change: Callable[[Json], Json]) -> Stored:
        """Replace an object by what a function makes of it; no version is made if nothing changes.

        Raises:
            ApiError: 404 if there is none; 409 if the result names another UID or version.
        """
        before = self.find(kind, key)
        current = before.decode()
        # The function may change what it is given.
        after = change(before.decode())
        after = {**after, "metadata": carry_metadata(kind, current["metadata"], after["metadata"])}
        if "spec" in after and after["spec"] != current.get("spec"):
            after["metadata"]["generation"] = current["metadata"].get("generation", 0) + 1
        if after == current:
            return before
        stored = self._write(kind, after, before)
        if is_over(after["metadata"]):
            return self._remove(stored)
        return stored

    def delete(
        self, plural: str, name: str, *, namespace: str = "default", grace: int | None = None
    ) -> Json:
        """Delete an object as the API does.

        Args:
            plural: of its kind.
            name: its name.
            namespace: its namespace.
            grace: seconds until it ends; None is its own period. Only pods that have a node and
                still run end gracefully; the others end at once.

        Raises:
            ApiError: 404 if there is none.
        """
        kind = self.kinds.of_plural(plural)
        return self.end(self.find(kind, _key(kind, namespace, name)), grace).decode()

    def end(self, stored: Stored, grace: int | None = None) -> Stored:
        """Begin the deletion of an object; see `delete`."""
        manifest = stored.decode()
        seconds = grace_period(manifest) if grace is None else min(grace, grace_period(manifest))
        metadata = manifest["metadata"]
        if not seconds and not metadata.get("finalizers"):
            return self._remove(stored)
        if seconds >= metadata.get("deletionGracePeriodSeconds", seconds + 1):
            return stored
        metadata["deletionTimestamp"] = timestamp(seconds)
        metadata["deletionGracePeriodSeconds"] = seconds
        marked = self._write(stored.kind, manifest, stored)
        delay = seconds if self._termination_delay is None else self._termination_delay
        if self._schedule is not None and seconds:
            self._schedule(delay, lambda: self._finish_if_there(marked))
        return marked

    def finish_deletion(self, plural: str, name: str, *, namespace: str = "default") -> None:
        """Let a terminating pod's containers end, and the pod with them.

        Raises:
            ApiError: 404 if there is none.
        """
        kind = self.kinds.of_plural(plural)
        self._finish(self.find(kind, _key(kind, namespace, name)))

    # -- inside --------------------------------------------------------------------------------

    def _finish_if_there(self, marked: Stored) -> None:
        current = self._objects[marked.kind].get(marked.key)
        if current is not None and current.uid == marked.uid:
            self._finish(current)

    def _finish(self, stored: Stored) -> None:
        ended = self.update(stored.kind, stored.key, end_containers)
        manifest = ended.decode()
        manifest["metadata"]["deletionGracePeriodSeconds"] = 0
        if manifest["metadata"].get("finalizers"):
            self._write(ended.kind, manifest, ended)
        else:
            self._remove(ended)

    def _remove(self, stored: Stored) -> Stored:
        if stored.kind.plural == "namespaces":
            self._empty_namespace(stored.key[1])
        del self._objects[stored.kind][stored.key]
        gone = stored.as_deleted(self.history.next_version())
        self._announce(Change("DELETED", gone, stored))
        return gone

    def _empty_namespace(self, namespace: str) -> None:
        for kind in self.kinds:
            if kind.namespaced:
                for stored in self.select(kind, namespace=namespace):
                    self._remove(stored)

    def _write(self, kind: Kind, manifest: Json, previous: Stored | None) -> Stored:
        stored = Stored.encode(kind, manifest, self.history.next_version())
        self._objects[kind][stored.key] = stored
        self._announce(Change("MODIFIED" if previous else "ADDED", stored, previous))
        return stored

    def _announce(self, change: Change) -> None:
        """Tell observers; one that writes is told of its own write after all heard of this one."""
        self.history.record(change)
        self._unannounced.append(change)
        if self._announcing:
            return
        self._announcing = True
        try:
            while self._unannounced:
                announced = self._unannounced.popleft()
                for observer in tuple(self._observers):
                    observer(announced)
        finally:
            self._announcing = False

    def _ensure_namespace(self, name: str) -> None:
        kind = self.kinds.of_plural("namespaces")
        if ("", name) not in self._objects[kind]:
            labels = {"kubernetes.io/metadata.name": name}
            metadata = {
                "name": name,
                "uid": str(uuid.uuid4()),
                "creationTimestamp": timestamp(),
                "labels": labels,
            }
            self._write(kind, {"metadata": metadata, "status": {"phase": "Active"}}, None)


def _key(kind: Kind, namespace: str, name: str) -> Key:
    return (namespace if kind.namespaced else "", name)
