"""Pod manifests as a cluster has them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from .objects import Json, timestamp

_TERMINATION_GRACE_S = 30


def make_pod(
    name: str = "pod-0",
    *,
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    ip: str | None = "10.0.0.1",
    ips: Sequence[str] = (),
    ready: bool = True,
    phase: str = "Running",
    node: str = "node-0",
    port: int = 8000,
    image: str = "registry.example/engine:1.0",
    uid: str | None = None,
    deletion_timestamp: str | None = None,
    managed_fields: bool = False,
) -> Json:
    """A pod with one container.

    Args:
        name: its name.
        namespace: its namespace.
        labels: its labels.
        annotations: its annotations.
        ip: its address; None before the network gave it one.
        ips: all its addresses where it has several, `ip` among them.
        ready: whether it is ready.
        phase: its phase.
        node: the node it is on; empty before it has one.
        port: the port of the container.
        image: the image of the container.
        uid: its identity; None lets the store make one.
        deletion_timestamp: since when it is terminating.
        managed_fields: whether it has the bulk of a real pod, about 7.5 KB of JSON in all, half
            of it field ownership.
    """
    container: Json = {
        "name": "engine",
        "image": image,
        "ports": [{"containerPort": port, "protocol": "TCP"}],
    }
    metadata: Json = {"name": name, "namespace": namespace}
    if uid is not None:
        metadata["uid"] = uid
    metadata |= {"labels": dict(labels or {}), "annotations": dict(annotations or {})}
    if deletion_timestamp is not None:
        metadata["deletionTimestamp"] = deletion_timestamp
        metadata["deletionGracePeriodSeconds"] = _TERMINATION_GRACE_S
    spec: Json = {
        "containers": [container],
        "terminationGracePeriodSeconds": _TERMINATION_GRACE_S,
        **({"nodeName": node} if node else {}),
    }
    if managed_fields:
        _add_bulk(metadata, spec)
    status = pod_status(spec["containers"], ip, ips=ips, ready=ready, phase=phase)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    }


def pod_status(
    containers: Sequence[Json],
    ip: str | None,
    *,
    ips: Sequence[str] = (),
    ready: bool = True,
    phase: str = "Running",
) -> Json:
    """The status of a pod with these containers."""
    now = timestamp()
    truth = {True: "True", False: "False"}
    conditions = [
        {"type": name, "status": truth[holds], "lastProbeTime": None, "lastTransitionTime": now}
        for name, holds in (
            ("PodReadyToStartContainers", ip is not None),
            ("Initialized", True),
            ("Ready", ready),
            ("ContainersReady", ready),
            ("PodScheduled", True),
        )
    ]
    running = phase == "Running"
    state = {"running": {"startedAt": now}} if running else {"waiting": {"reason": phase}}
    statuses = [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": image_id(container.get("image", "")) if running else "",
            "containerID": f"containerd://{'f' * 64}",
            "ready": ready,
            "started": running,
            "restartCount": 0,
            "state": state,
            "lastState": {},
        }
        for container in containers
    ]
    status: Json = {"phase": phase, "conditions": conditions, "containerStatuses": statuses}
    if ip is not None:
        addresses = [{"ip": address} for address in ips or (ip,)]
        status |= {"hostIP": "192.0.2.1", "podIP": ip, "podIPs": addresses, "startTime": now}
    return {**status, "qosClass": "Burstable"}


def image_id(image: str) -> str:
    """Say what image a node has got under a name: another for each."""
    return f"{image}@sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def _add_bulk(metadata: Json, spec: Json) -> None:
    """Give a pod what admission, probes and field ownership give to a real one."""
    container = spec["containers"][0]
    container["env"] = [{"name": f"SETTING_{n}", "value": f"value-{n}"} for n in range(24)]
    resources = {"cpu": "8", "memory": "64Gi", "vpc.amazonaws.com/efa": "1"}
    container["resources"] = {"limits": resources, "requests": resources}
    probe = {
        "httpGet": {"path": "/health", "port": 8000, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }
    container |= {"livenessProbe": probe, "readinessProbe": probe, "startupProbe": probe}
    container["volumeMounts"] = [
        {
            "name": "kube-api-access-x7k2p",
            "readOnly": True,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        }
    ]
    spec["volumes"] = [
        {
            "name": "kube-api-access-x7k2p",
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt"}},
                ],
            },
        }
    ]
    spec["tolerations"] = [
        {
            "key": f"node.kubernetes.io/{condition}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 300,
        }
        for condition in ("not-ready", "unreachable")
    ]
    metadata["managedFields"] = [
        _ownership("kube-controller-manager", _owned_by_template(container, metadata)),
        _ownership("kubelet", {"f:status": _OWNED_STATUS}, subresource="status"),
    ]


def _ownership(manager: str, fields: Json, **more: str) -> Json:
    return {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": timestamp(),
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
        **more,
    }


def _owned(*names: str) -> dict[str, Any]:
    return {".": {}, **{f"f:{name}": {} for name in names}}


def _owned_by_template(container: Json, metadata: Json) -> Json:
    probe = _owned("failureThreshold", "periodSeconds", "successThreshold", "timeoutSeconds") | {
        "f:httpGet": _owned("path", "port", "scheme")
    }
    resources = {
        kind: _owned(*container["resources"]["limits"]) for kind in ("f:limits", "f:requests")
    }
    owned_container = _owned(
        "image", "imagePullPolicy", "name", "terminationMessagePath", "terminationMessagePolicy"
    ) | {
        "f:env": {
            ".": {},
            **{
                f'k:{{"name":"{env["name"]}"}}': _owned("name", "value") for env in container["env"]
            },
        },
        "f:ports": {
            ".": {},
            'k:{"containerPort":8000,"protocol":"TCP"}': _owned("containerPort", "protocol"),
        },
        "f:livenessProbe": probe,
        "f:readinessProbe": probe,
        "f:startupProbe": probe,
        "f:resources": resources,
    }
    return {
        "f:metadata": {
            "f:generateName": {},
            "f:labels": _owned(*metadata["labels"]),
            "f:annotations": _owned(*metadata["annotations"]),
        },
        "f:spec": {
            "f:containers": {'k:{"name":"engine"}': owned_container},
            "f:dnsPolicy": {},
            "f:enableServiceLinks": {},
            "f:restartPolicy": {},
            "f:schedulerName": {},
            "f:securityContext": {},
            "f:terminationGracePeriodSeconds": {},
        },
    }


_OWNED_STATUS: Json = {
    "f:conditions": {
        f'k:{{"type":"{name}"}}': _owned("lastProbeTime", "lastTransitionTime", "status", "type")
        for name in ("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")
    },
    "f:containerStatuses": {},
    "f:hostIP": {},
    "f:hostIPs": {},
    "f:phase": {},
    "f:podIP": {},
    "f:podIPs": {".": {}, 'k:{"ip":"10.0.0.1"}': _owned("ip")},
    "f:startTime": {},
}
