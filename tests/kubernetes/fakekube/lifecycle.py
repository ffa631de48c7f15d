"""The rules by which an object lives and ends: what the server owns of it, and how pods stop."""

from .failures import ApiError
from .kinds import Kind
from .objects import Json, timestamp

_DEFAULT_GRACE_S = 30


def carry_metadata(kind: Kind, current: Json, wanted: Json) -> Json:
    """The metadata of an update: what the server owns stays as it was.

    Raises:
        ApiError: 409 if the update is based on another object or on another version.
    """
    name = current["name"]
    version = wanted.get("resourceVersion")
    if version and version != current["resourceVersion"]:
        raise ApiError.conflict(
            kind.qualified,
            name,
            "the object has been modified; please apply your changes to the latest version and"
            " try again",
        )
    uid = wanted.get("uid", current["uid"])
    if uid != current["uid"]:
        raise ApiError.conflict(
            kind.qualified,
            name,
            f"Precondition failed: UID in precondition: {uid}, in object meta: {current['uid']}",
        )
    owned = (
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    )
    kept = {field: current[field] for field in owned if field in current}
    free = {field: value for field, value in wanted.items() if field not in owned}
    return {**kept, **free}


def is_over(metadata: Json) -> bool:
    """Whether a terminating object has nothing left to wait for."""
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("finalizers")
        and not metadata.get("deletionGracePeriodSeconds")
    )


def grace_period(manifest: Json) -> int:
    """Seconds in which an object ends by itself: 0 unless it is a pod that runs on a node."""
    spec = manifest.get("spec") or {}
    phase = (manifest.get("status") or {}).get("phase")
    if manifest["kind"] != "Pod" or not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    return int(spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S))


def end_containers(pod: Json) -> Json:
    """What the kubelet reports of a pod whose containers ended."""
    status = pod.setdefault("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] in ("Ready", "ContainersReady"):
            condition.update(status="False", reason="ContainersNotReady")
    for container in status.get("containerStatuses", []):
        ended = {"exitCode": 0, "reason": "Completed", "finishedAt": timestamp()}
        container.update(ready=False, started=False, state={"terminated": ended})
    return pod
