"""A controller that makes pods of Deployments, and a kubelet that says they run."""

import asyncio
import hashlib
import math
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from .failures import ApiError
from .objects import Change, Json, timestamp
from .pods import pod_status
from .store import Store

_HASH_LABEL = "pod-template-hash"


class DeploymentController:
    """Gives every Deployment its ReplicaSet, its pods and its status.

    A new template replaces all pods at once, without surge or delay; pods are running and ready
    as soon as they exist. Or else it rolls, with the surge and the unavailability that Deployments
    have by default, a quarter each; then pods are pending until somebody patches their status.

    Args:
        store: the objects.
        allocate_ip: the address of a pod that is about to be created.
        rolling: whether pods are replaced one after the other.
    """

    def __init__(
        self, store: Store, allocate_ip: Callable[[Json], str], *, rolling: bool = False
    ) -> None:
        self._store = store
        self._allocate_ip = allocate_ip
        self._rolling = rolling
        self._forget: Callable[[], None] | None = None
        self._due: asyncio.Handle | None = None

    def start(self) -> None:
        """Synchronise now, and shortly after every write of a Deployment or of a pod."""
        self._forget = self._store.observe(self._notice)
        self.sync_all()

    def stop(self) -> None:
        """Leave everything as it is."""
        if self._forget is not None:
            self._forget()
        if self._due is not None:
            self._due.cancel()

    def sync_all(self) -> None:
        """Bring all pods and statuses in line with the Deployments that there are."""
        deployments = self._store.objects("deployments")
        known = {deployment["metadata"]["uid"] for deployment in deployments}
        for replica_set in self._store.objects("replicasets"):
            if _owner(replica_set) not in known:
                self._delete("replicasets", replica_set)
        for deployment in deployments:
            self.sync_deployment(deployment)
        alive = {owner["metadata"]["uid"] for owner in self._store.objects("replicasets")}
        for pod in self._store.objects("pods", selector=_HASH_LABEL):
            if _owner(pod) not in alive:
                self._delete("pods", pod)

    def sync_deployment(self, deployment: Json) -> None:
        """Bring the pods of one Deployment, and its status, in line with its spec."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        namespace = metadata["namespace"]
        wanted = spec.get("replicas", 1)
        current = self._replica_set(deployment)["metadata"]["uid"]
        pods: list[Json] = []
        replica_sets = [
            replica_set
            for replica_set in self._store.objects("replicasets", namespace=namespace)
            if _owner(replica_set) == metadata["uid"]
        ]
        sizes = self._size_replica_sets(replica_sets, current, wanted)
        for replica_set in replica_sets:
            size = sizes[replica_set["metadata"]["uid"]]
            kept = self._scale(replica_set, size)
            self._report(replica_set, size, kept)
            if replica_set["metadata"]["uid"] == current:
                pods = kept
        status = _deployment_status(deployment, pods, wanted)
        self._store.patch("deployments", metadata["name"], {"status": status}, namespace=namespace)

    def _notice(self, change: Change) -> None:
        if change.stored.kind.plural in ("deployments", "pods") and self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._catch_up)

    def _catch_up(self) -> None:
        self._due = None
        self.sync_all()

    def _replica_set(self, deployment: Json) -> Json:
        """The ReplicaSet of the present template."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = spec["template"]
        digest = hashlib.sha256(msgspec.json.encode(template, order="sorted")).hexdigest()[:10]
        name, namespace = f"{metadata['name']}-{digest}", metadata["namespace"]
        try:
            return self._store.get("replicasets", name, namespace=namespace)
        except ApiError:
            pass
        labels = {**template["metadata"].get("labels", {}), _HASH_LABEL: digest}
        selector = {**spec["selector"].get("matchLabels", {}), _HASH_LABEL: digest}
        return self._store.create(
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": labels,
                    "ownerReferences": [_reference(deployment)],
                },
                "spec": {
                    "replicas": spec.get("replicas", 1),
                    "selector": {"matchLabels": selector},
                    "template": {
                        **template,
                        "metadata": {**template["metadata"], "labels": labels},
                    },
                },
            }
        )

    def _size_replica_sets(
        self, replica_sets: list[Json], current: str, wanted: int
    ) -> dict[str, int]:
        """Say how many pods each ReplicaSet is to have now, by UID."""
        if not self._rolling:
            return {
                each["metadata"]["uid"]: wanted if each["metadata"]["uid"] == current else 0
                for each in replica_sets
            }
        pods = {each["metadata"]["uid"]: self._living(each) for each in replica_sets}
        sizes = {uid: len(each) for uid, each in pods.items()}
        surge, unavailable = math.ceil(wanted / 4), wanted // 4
        surplus = _ready([pod for each in pods.values() for pod in each]) - wanted + unavailable
        for uid in pods.keys() - {current}:
            # Those that are not ready are the first to go, and make nothing unavailable.
            ready = _ready(pods[uid])
            going = max(0, min(ready, surplus))
            sizes[uid] = ready - going
            surplus -= going
        others = sum(sizes.values()) - sizes[current]
        sizes[current] = max(0, min(wanted, wanted + surge - others))
        return sizes

    def _living(self, replica_set: Json) -> list[Json]:
        """Give the pods of a ReplicaSet that do not terminate, the ready ones first."""
        metadata = replica_set["metadata"]
        pods = [
            pod
            for pod in self._store.objects(
                "pods", namespace=metadata["namespace"], selector=_HASH_LABEL
            )
            if _owner(pod) == metadata["uid"] and "deletionTimestamp" not in pod["metadata"]
        ]
        return sorted(pods, key=lambda pod: -_ready([pod]))

    def _scale(self, replica_set: Json, wanted: int) -> list[Json]:
        """Create or delete pods until there are as many as wanted; gives those that stay."""
        pods = self._living(replica_set)
        for pod in pods[wanted:]:
            self._delete("pods", pod)
        return pods[:wanted] + [self._create_pod(replica_set) for _ in range(wanted - len(pods))]

    def _create_pod(self, replica_set: Json) -> Json:
        owner, template = replica_set["metadata"], replica_set["spec"]["template"]
        name = f"{owner['name']}-{uuid.uuid4().hex[:5]}"
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **template["metadata"],
                "name": name,
                "namespace": owner["namespace"],
                "generateName": f"{owner['name']}-",
                "ownerReferences": [_reference(replica_set)],
            },
            "spec": {"nodeName": f"node-{name}", **template["spec"]},
        }
        pod["status"] = pod_status(
            template["spec"]["containers"],
            self._allocate_ip(pod),
            ready=not self._rolling,
            phase="Pending" if self._rolling else "Running",
        )
        return self._store.create(pod)

    def _delete(self, plural: str, manifest: Json) -> None:
        metadata = manifest["metadata"]
        self._store.delete(plural, metadata["name"], namespace=metadata["namespace"])

    def _report(self, replica_set: Json, wanted: int, pods: list[Json]) -> None:
        metadata = replica_set["metadata"]
        patch = {
            "spec": {"replicas": wanted},
            "status": {"replicas": len(pods), "readyReplicas": _ready(pods)},
        }
        namespace = metadata["namespace"]
        self._store.patch("replicasets", metadata["name"], patch, namespace=namespace)


def _deployment_status(deployment: Json, pods: list[Json], wanted: int) -> Json:
    ready = _ready(pods)
    before: dict[str, Json] = {
        condition["type"]: condition
        for condition in deployment.get("status", {}).get("conditions", [])
    }

    def condition(name: str, reason: str, *, holds: bool) -> Json:
        now = timestamp()
        status = "True" if holds else "False"
        if before.get(name, {}).get("status") == status:
            return before[name]
        times = {"lastUpdateTime": now, "lastTransitionTime": now}
        return {"type": name, "status": status, "reason": reason, "message": "", **times}

    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": len(pods),
        "updatedReplicas": len(pods),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": wanted - ready,
        "conditions": [
            condition("Available", "MinimumReplicasAvailable", holds=ready >= wanted),
            condition("Progressing", "NewReplicaSetAvailable", holds=True),
        ],
    }


def _ready(pods: list[Json]) -> int:
    return sum(
        {"type": "Ready", "status": "True"}.items() <= condition.items()
        for pod in pods
        for condition in pod["status"].get("conditions", [])
    )


def _reference(owner: Json) -> Json:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owner(manifest: Json) -> str | None:
    for reference in manifest["metadata"].get("ownerReferences", []):
        if reference.get("controller"):
            return str(reference["uid"])
    return None
