"""What the fake server's patch formats make of an object."""

from typing import Any

import pytest
from fakekube import ApiError
from fakekube.patches import json_patch, merge_patch, strategic_merge_patch

EXISTING = {"name": "engine", "image": "a", "env": [{"name": "A", "value": "1"}]}
SIDECAR = {"name": "sidecar", "image": "s"}


def pod(*containers: Any) -> dict[str, Any]:
    return {"spec": {"containers": list(containers)}}


@pytest.mark.parametrize(
    ("current", "patch", "merged"),
    [
        # The examples of RFC 7386, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_follows_the_rfc(current: Any, patch: Any, merged: Any) -> None:
    assert merge_patch(current, patch) == merged


@pytest.mark.parametrize(
    ("patch", "merged"),
    [
        (pod({"name": "engine", "image": "b"}), pod({**EXISTING, "image": "b"}, SIDECAR)),
        (pod({"name": "new"}), pod(EXISTING, SIDECAR, {"name": "new"})),
        (pod({"name": "engine", "$patch": "delete"}), pod(SIDECAR)),
        (pod({"$patch": "replace"}, {"name": "only"}), pod({"name": "only"})),
        (
            pod({"name": "engine", "env": [{"name": "B", "value": "2"}]}),
            pod(
                {**EXISTING, "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                SIDECAR,
            ),
        ),
        (
            {"spec": {"$setElementOrder/containers": [{"name": "engine"}], "nodeName": "n"}},
            {"spec": {"containers": [EXISTING, SIDECAR], "nodeName": "n"}},
        ),
        ({"spec": {"$patch": "replace", "nodeName": "n"}}, {"spec": {"nodeName": "n"}}),
        ({"spec": {"$retainKeys": ["nodeName"], "nodeName": "n"}}, {"spec": {"nodeName": "n"}}),
        ({"spec": {"containers": None}}, {"spec": {}}),
        ({"spec": None}, {}),
    ],
)
def test_a_strategic_patch_joins_lists_by_the_names_of_their_items(patch: Any, merged: Any) -> None:
    assert strategic_merge_patch(pod(EXISTING, SIDECAR), patch) == merged


def test_a_strategic_patch_replaces_lists_of_plain_values() -> None:
    assert strategic_merge_patch({"args": ["a", "b"]}, {"args": ["c"]}) == {"args": ["c"]}


def test_a_strategic_patch_takes_plain_values_out_of_a_list() -> None:
    patch = {"$deleteFromPrimitiveList/finalizers": ["a"]}
    assert strategic_merge_patch({"finalizers": ["a", "b"]}, patch) == {"finalizers": ["b"]}


@pytest.mark.parametrize(
    ("operation", "patched"),
    [
        ({"op": "add", "path": "/b", "value": 2}, {"a": [1, 2], "m/n": "x", "b": 2}),
        ({"op": "add", "path": "/a/-", "value": 3}, {"a": [1, 2, 3], "m/n": "x"}),
        ({"op": "add", "path": "/a/0", "value": 0}, {"a": [0, 1, 2], "m/n": "x"}),
        ({"op": "replace", "path": "/a/1", "value": 9}, {"a": [1, 9], "m/n": "x"}),
        ({"op": "replace", "path": "/m~1n", "value": "y"}, {"a": [1, 2], "m/n": "y"}),
        ({"op": "remove", "path": "/a/0"}, {"a": [2], "m/n": "x"}),
        ({"op": "move", "from": "/a", "path": "/c"}, {"c": [1, 2], "m/n": "x"}),
        ({"op": "copy", "from": "/a/0", "path": "/c"}, {"a": [1, 2], "m/n": "x", "c": 1}),
        ({"op": "test", "path": "/a/1", "value": 2}, {"a": [1, 2], "m/n": "x"}),
        ({"op": "replace", "path": "", "value": {}}, {}),
    ],
)
def test_a_json_patch_follows_the_rfc(operation: Any, patched: Any) -> None:
    assert json_patch({"a": [1, 2], "m/n": "x"}, [operation]) == patched


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/absent", "value": 1},
        {"op": "remove", "path": "/a/7"},
        {"op": "add", "path": "/a/7", "value": 1},
        {"op": "add", "path": "/absent/b", "value": 1},
        {"op": "test", "path": "/a/0", "value": 2},
    ],
)
def test_a_json_patch_that_cannot_be_done_is_unprocessable(operation: Any) -> None:
    with pytest.raises(ApiError) as refused:
        json_patch({"a": [1]}, [operation])
    assert refused.value.code == 422
