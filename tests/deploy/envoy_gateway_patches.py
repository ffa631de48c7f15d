"""What Envoy Gateway does with the operations of an EnvoyPatchPolicy."""

import copy
import re
from typing import Any

from manifests import Object

Resources = dict[str, dict[str, Object]]
"""Envoy's resources by type and name."""

_STEP = re.compile(r"""\.(?P<member>\w+)|\[(?P<index>\d+)\]|\[\?\(@\.name=='(?P<name>[^']+)'\)\]""")


def apply_patch(resources: Resources, patch: Object) -> None:
    """Apply an operation; a missing path is made, as Envoy Gateway does.

    Raises:
        LookupError: What is to be patched is not there: Envoy Gateway would go on without it.
    """
    kind = patch["type"].rpartition(".")[2]
    operation = patch["operation"]
    assert operation["op"] == "add"
    value = copy.deepcopy(operation["value"])
    if not (operation["path"] or "jsonPath" in operation):
        resources[kind][patch["name"]] = value
        return
    if patch["name"] not in resources[kind]:
        raise LookupError(f"no {kind} is called {patch['name']}")
    place: Any = resources[kind][patch["name"]]
    if "jsonPath" in operation:
        place = _select(place, operation["jsonPath"])
    tokens = operation["path"].removeprefix("/").split("/")
    *parents, last = (token.replace("~1", "/").replace("~0", "~") for token in tokens)
    for token in parents:
        place = place[int(token)] if isinstance(place, list) else place.setdefault(token, {})
    if isinstance(place, list):
        place.insert(int(last), value)
    else:
        place[last] = value


def _select(document: Any, path: str) -> Any:
    """Return what a JSONPath leads to, of the kind that our patches have."""
    assert path.startswith("$")
    place, end = document, 1
    while end < len(path):
        step = _STEP.match(path, end)
        assert step is not None, path[end:]
        end = step.end()
        if step["name"] is not None:
            found = [one for one in place if one["name"] == step["name"]]
            if len(found) != 1:
                raise LookupError(f"{len(found)} are called {step['name']}")
            (place,) = found
        else:
            place = place[step["member"] or int(step["index"])]
    return place
