"""What a request asks for, read from its method, path and query."""

from collections.abc import Mapping
from dataclasses import dataclass

from .kinds import Kind, Kinds
from .objects import Key

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


def is_true(text: str | None) -> bool:
    """Whether a query parameter is true, as Go reads it: clients send `1`, `true` and `True`."""
    return text in _TRUE


@dataclass(frozen=True, slots=True)
class Call:
    """A request for objects, or for what the server can do.

    Attributes:
        verb: list, watch, get, create, update, patch, delete, deletecollection or discovery.
        resource: the plural in the path; empty for discovery.
        kind: what the plural stands for; None if that is not installed.
        namespace: the namespace in the path; None asks for all.
        name: the object's name, or None.
        subresource: what stands behind the name, or empty.
    """

    verb: str
    resource: str = ""
    kind: Kind | None = None
    namespace: str | None = None
    name: str | None = None
    subresource: str = ""

    @property
    def key(self) -> Key:
        """Where the named object is stored."""
        assert self.kind is not None
        assert self.name is not None
        return (self.namespace or "" if self.kind.namespaced else "", self.name)

    @classmethod
    def parse(cls, kinds: Kinds, method: str, path: str, query: Mapping[str, str]) -> "Call":
        """Read a request; a path that leads to no object is a `discovery` call."""
        match [part for part in path.split("/") if part]:
            case ["api", version, *rest] if rest:
                group = ""
            case ["apis", group, version, *rest] if rest:
                pass
            case _:
                return cls("discovery")
        namespace = None
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        resource, name, subresource, *_ = (*rest, "", "")
        if method == "GET":
            verb = "get" if name else "watch" if is_true(query.get("watch")) else "list"
        elif method == "DELETE":
            verb = "delete" if name else "deletecollection"
        else:
            verb = _VERBS.get(method, method.lower())
        kind = kinds.at(group, version, resource)
        return cls(verb, resource, kind, namespace, name or None, subresource)


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request that came in, whatever became of it.

    Attributes:
        verb: as in `Call`.
        resource: the plural in the path; empty for discovery.
        namespace: the namespace in the path; None asks for all.
        name: the object's name, or None.
        method: HTTP method.
        path: without the query.
        query: its parameters.
        headers: its headers, names in lower case.
    """

    verb: str
    resource: str
    namespace: str | None
    name: str | None
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
