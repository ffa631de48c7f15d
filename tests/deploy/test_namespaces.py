"""In another namespace, under other names: what names something still names it."""

from pathlib import Path

import pytest
from envoy_gateway import translate
from manifests import (
    EVERYTHING,
    OVERLAYS,
    PATCHING,
    ROUTING,
    Object,
    compose,
    find,
)

NAMESPACE = "inference"
SERVICES = ("pdrouter", "pdrouter-decode", "aibrix-gateway-plugins", "llama31-8b", "blue-pdrouter")
ENDPOINTS = {service: ["127.0.0.1:9"] for service in SERVICES}

# What a user provides for the component `tls`.
AUTHORITY = {"kind": "ConfigMap", "metadata": {"name": "pdrouter-ca"}, "data": {"ca.crt": ""}}


def patch_policies(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] == "EnvoyPatchPolicy"]


def expect_patches_to_fit(objects: list[Object], policies: int) -> None:
    assert len(patch_policies(objects)) == policies
    assert {one["metadata"]["namespace"] for one in patch_policies(objects)} == {NAMESPACE}
    assert "$(" not in str(patch_policies(objects))
    # It raises where a patch finds nothing under the name that it has.
    assert f"{NAMESPACE}/" in translate([*objects, AUTHORITY], ENDPOINTS)


@pytest.mark.parametrize("component", PATCHING)
@pytest.mark.parametrize("prefix", ["", "blue-"])
def test_patches_follow_namespace_and_names(component: str, prefix: str) -> None:
    objects = compose(["envoy-gateway", component], namespace=NAMESPACE, namePrefix=prefix)

    expect_patches_to_fit(objects, 1)
    assert find(objects, "Gateway")["metadata"]["name"] == f"{prefix}pdrouter"


@pytest.mark.parametrize("routing", ROUTING)
def test_all_components_together_do(routing: str) -> None:
    objects = compose(EVERYTHING[routing], namespace=NAMESPACE)

    expect_patches_to_fit(objects, len(PATCHING) - (routing == "endpoint-override"))
    assert {one["metadata"].get("namespace", NAMESPACE) for one in objects} == {NAMESPACE}


@pytest.mark.parametrize(("overlay", "policies"), [*zip(OVERLAYS, (1, 3), strict=True)])
def test_a_users_own_layer_does(overlay: Path, policies: int) -> None:
    """Its namespace is set after that of the overlay, and after its components."""
    objects = compose(["token-accounting"], on=overlay, namespace=NAMESPACE)

    expect_patches_to_fit(objects, policies)


def test_a_name_that_nothing_has_is_seen() -> None:
    """Or none of these tests could fail."""
    objects = compose(["envoy-gateway", "token-accounting"], namespace=NAMESPACE)
    patch_policies(objects)[0]["spec"]["jsonPatches"][0]["name"] = "default/pdrouter/http"

    with pytest.raises(LookupError, match="no Listener"):
        translate(objects, ENDPOINTS)
