"""The columns that kubectl prints, which a real server computes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .kinds import Kind
from .objects import Json


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: its heading.
        cell: its value for an object.
        type: its type in the API.
        wide: whether only `-o wide` shows it.
    """

    name: str
    cell: Callable[[Json], Any]
    type: str = "string"
    wide: bool = False


def column_definitions(kind: Kind) -> list[Json]:
    """The headings of a kind's table."""
    return [
        {
            "name": column.name,
            "type": column.type,
            "format": "name" if column.name == "Name" else "",
            "description": "",
            "priority": int(column.wide),
        }
        for column in _columns(kind)
    ]


def table_cells(kind: Kind, manifest: Json) -> list[Any]:
    """The row of an object."""
    return [column.cell(manifest) for column in _columns(kind)]


def _columns(kind: Kind) -> tuple[Column, ...]:
    return (_NAME, *_COLUMNS.get(kind.plural, ()), _AGE, *_WIDE_COLUMNS.get(kind.plural, ()))


def _at(*path: str, default: Any = "") -> Callable[[Json], Any]:
    """Reads a member of an object."""

    def read(manifest: Json) -> Any:
        value: Any = manifest
        for name in path:
            value = (value or {}).get(name)
        return default if value is None else value

    return read


def _age(manifest: Json) -> str:
    created = datetime.fromisoformat(manifest["metadata"]["creationTimestamp"])
    seconds = int((datetime.now(UTC) - created).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def _statuses(pod: Json) -> list[Json]:
    return _at("status", "containerStatuses", default=[])(pod)  # type: ignore[no-any-return]


def _ready_containers(pod: Json) -> str:
    ready = sum(bool(status.get("ready")) for status in _statuses(pod))
    return f"{ready}/{len(pod['spec']['containers'])}"


def _pod_status(pod: Json) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for status in _statuses(pod):
        state = status.get("state", {})
        reason = state.get("waiting", {}).get("reason") or state.get("terminated", {}).get("reason")
        if reason:
            return str(reason)
    return str(_at("status", "phase")(pod))


def _restarts(pod: Json) -> str:
    return str(sum(status.get("restartCount", 0) for status in _statuses(pod)))


def _ready_replicas(owner: Json) -> str:
    ready = _at("status", "readyReplicas", default=0)(owner)
    return f"{ready}/{_at('spec', 'replicas', default=1)(owner)}"


def _selector(owner: Json) -> str:
    labels = _at("spec", "selector", "matchLabels", default={})(owner)
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _of_containers(member: str) -> Callable[[Json], str]:
    def read(owner: Json) -> str:
        containers = owner["spec"]["template"]["spec"]["containers"]
        return ",".join(container.get(member, "") for container in containers)

    return read


def _ports(service: Json) -> str:
    ports = _at("spec", "ports", default=[])(service)
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports)


_NAME = Column("Name", _at("metadata", "name"))
_AGE = Column("Age", _age)

_COLUMNS = {
    "pods": (
        Column("Ready", _ready_containers),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
    ),
    "deployments": (
        Column("Ready", _ready_replicas),
        Column("Up-to-date", _at("status", "updatedReplicas", default=0), "integer"),
        Column("Available", _at("status", "availableReplicas", default=0), "integer"),
    ),
    "replicasets": (
        Column("Desired", _at("spec", "replicas", default=1), "integer"),
        Column("Current", _at("status", "replicas", default=0), "integer"),
        Column("Ready", _at("status", "readyReplicas", default=0), "integer"),
    ),
    "namespaces": (Column("Status", _at("status", "phase")),),
    "services": (
        Column("Type", _at("spec", "type", default="ClusterIP")),
        Column("Cluster-IP", _at("spec", "clusterIP", default="<none>")),
        Column("External-IP", lambda _: "<none>"),
        Column("Port(s)", _ports),
    ),
    "httproutes": (Column("Hostnames", _at("spec", "hostnames")),),
    "modeladapters": (
        Column("Phase", _at("status", "phase")),
        Column("Desired", _at("status", "desiredReplicas"), "integer"),
        Column("Ready", _at("status", "readyReplicas"), "integer"),
        Column("Candidates", _at("status", "candidates"), "integer"),
        Column("Model Path", _at("spec", "artifactURL")),
    ),
}
"""Between the name and the age."""

_OWNER_WIDE = (
    Column("Containers", _of_containers("name"), wide=True),
    Column("Images", _of_containers("image"), wide=True),
    Column("Selector", _selector, wide=True),
)
_WIDE_COLUMNS = {
    "pods": (
        Column("IP", _at("status", "podIP", default="<none>"), wide=True),
        Column("Node", _at("spec", "nodeName", default="<none>"), wide=True),
        Column("Nominated Node", lambda _: "<none>", wide=True),
        Column("Readiness Gates", lambda _: "<none>", wide=True),
    ),
    "deployments": _OWNER_WIDE,
    "replicasets": _OWNER_WIDE,
}
"""After the age."""
