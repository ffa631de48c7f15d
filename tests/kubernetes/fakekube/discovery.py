"""What the server says of itself: versions, groups, resources, and where it can be patched."""

from .kinds import Kind, Kinds
from .objects import Json

_VERSION: Json = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.25",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_STATUS_VERBS = ["get", "patch", "update"]
_SCALE: Json = {
    "name": "deployments/scale",
    "singularName": "",
    "namespaced": True,
    "group": "autoscaling",
    "version": "v1",
    "kind": "Scale",
    "verbs": _STATUS_VERBS,
}
_HEALTH = ("/healthz", "/livez", "/readyz")


def describe(kinds: Kinds, path: str) -> Json | str | None:
    """The answer to a discovery request, text for a health check; None if there is no such path."""
    if path in _HEALTH:
        return "ok"
    match [part for part in path.split("/") if part]:
        case ["version"]:
            return _VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            groups = [_group(kinds, group) for group in _groups(kinds)]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        case ["apis", group] if group in _groups(kinds):
            return {**_group(kinds, group), "kind": "APIGroup", "apiVersion": "v1"}
        case ["api", version]:
            return _resources(kinds, "", version)
        case ["apis", group, version]:
            return _resources(kinds, group, version)
        case ["openapi", "v3"]:
            paths = {_root(kind)[1:] for kind in kinds}
            links = {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in sorted(paths)}
            return {"paths": links}
        case ["openapi", "v3", *rest]:
            return _openapi(kinds, "/" + "/".join(rest))
        case _:
            return None


def _root(kind: Kind) -> str:
    return f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"


def _groups(kinds: Kinds) -> list[str]:
    return list(dict.fromkeys(kind.group for kind in kinds if kind.group))


def _group(kinds: Kinds, group: str) -> Json:
    versions = dict.fromkeys(kind.version for kind in kinds if kind.group == group)
    served = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
    return {"name": group, "versions": served, "preferredVersion": served[0]}


def _resources(kinds: Kinds, group: str, version: str) -> Json | None:
    resources: list[Json] = []
    group_version = ""
    for kind in kinds:
        if (kind.group, kind.version) != (group, version):
            continue
        group_version = kind.api_version
        shared = {"singularName": "", "namespaced": kind.namespaced, "kind": kind.name}
        names = {"singularName": kind.name.lower(), "shortNames": list(kind.short_names)}
        resources += [
            {**shared, **names, "name": kind.plural, "verbs": _VERBS},
            {**shared, "name": f"{kind.plural}/status", "verbs": _STATUS_VERBS},
        ]
    if not resources:
        return None
    if group == "apps":
        resources.append(_SCALE)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }


def _openapi(kinds: Kinds, root: str) -> Json | None:
    """No schemas: kubectl then leaves validation to the server, which this one does not do."""
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("fieldManager", "fieldValidation", "force")
    ]
    paths: Json = {}
    for kind in kinds:
        if _root(kind) != root:
            continue
        middle = "/namespaces/{namespace}" if kind.namespaced else ""
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.name}
        patch = {
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": gvk,
        }
        paths[f"{root}{middle}/{kind.plural}/{{name}}"] = {"patch": patch}
    if not paths:
        return None
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": _VERSION["gitVersion"]},
        "paths": paths,
        "components": {"schemas": {}},
    }
