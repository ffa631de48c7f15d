"""An API server would accept every object that `deploy/` can make."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import (
    COMPONENTS,
    DEPLOY,
    EVERYTHING,
    KUSTOMIZATIONS,
    PATCHING,
    ROUTING,
    Object,
    build,
    compose,
    find,
    label,
)
from validation import CRDS, UNKNOWN_KINDS, find_problems, is_custom

needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason=f"no CRDs at {CRDS}: custom resources are not validated"
)
# A component that only changes another one's objects, or names them, is built with it.
BESIDE = {
    **{name: ("envoy-gateway", name) for name in (*ROUTING, *PATCHING)},
    "json-errors": ("envoy-gateway", "endpoint-override", "json-errors"),
}


def with_component(directory: Path) -> list[Object]:
    return compose(BESIDE.get(directory.name, (directory.name,)))


def with_every_component(routing: str) -> list[Object]:
    return compose(EVERYTHING[routing], namespace="inference")


BUILDS: list[Any] = [
    *(pytest.param(build, path, id=label(path)) for path in KUSTOMIZATIONS),
    *(pytest.param(with_component, path, id=label(path)) for path in COMPONENTS),
    *(pytest.param(with_every_component, name, id=f"all with {name}") for name in ROUTING),
]


@pytest.mark.parametrize(("make", "source"), BUILDS)
def test_built_in_kinds_are_valid(make: Callable[[Any], list[Object]], source: Any) -> None:
    objects = make(source)

    assert objects
    assert {
        problem for one in objects if not is_custom(one) for problem in find_problems(one)
    } == set()


@needs_crds
@pytest.mark.parametrize(("make", "source"), BUILDS)
def test_custom_resources_are_valid(make: Callable[[Any], list[Object]], source: Any) -> None:
    checked = [one for one in make(source) if is_custom(one) and one["kind"] not in UNKNOWN_KINDS]

    assert {one["kind"]: found for one in checked if (found := find_problems(one))} == {}


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=label)
def test_every_file_belongs_to_a_kustomization(path: Path) -> None:
    if path.name == "kustomization.yaml":
        assert path.parent in (*KUSTOMIZATIONS, *COMPONENTS)
    else:
        assert path.name in (path.parent / "kustomization.yaml").read_text()


class TestTheValidatorBites:
    def break_builtin(self, kind: str, change: Callable[[Object], None]) -> list[str]:
        one = copy.deepcopy(find(compose(["network-policy"]), kind))
        assert find_problems(one) == []
        change(one)
        return find_problems(one)

    @pytest.mark.parametrize(
        ("kind", "change", "problem"),
        [
            pytest.param(
                "NetworkPolicy",
                lambda one: one["spec"].update(ingres=one["spec"].pop("ingress")),
                "ingres",
                id="misspelt field",
            ),
            pytest.param(
                "Deployment",
                lambda one: one["spec"].update(replicas="two"),
                "replicas",
                id="wrong type",
            ),
            pytest.param(
                "Deployment",
                lambda one: one["spec"].pop("selector"),
                "selector",
                id="missing field",
            ),
            pytest.param(
                "Deployment",
                lambda one: one["spec"]["template"]["spec"]["containers"][0].update(port=8080),
                "port",
                id="unknown field deep inside",
            ),
        ],
    )
    def test_at_built_in_kinds(
        self, kind: str, change: Callable[[Object], None], problem: str
    ) -> None:
        (found,) = self.break_builtin(kind, change)

        assert problem in found

    @needs_crds
    @pytest.mark.parametrize(
        ("kind", "change", "problem"),
        [
            pytest.param(
                "EnvoyExtensionPolicy",
                lambda spec: spec["extProc"][0].update(messageTimout="1s"),
                "messageTimout",
                id="misspelt field",
            ),
            pytest.param(
                "EnvoyExtensionPolicy",
                lambda spec: spec["extProc"][0].update(messageTimeout="ten minutes"),
                "messageTimeout",
                id="no duration",
            ),
            pytest.param(
                "EnvoyExtensionPolicy",
                lambda spec: spec["extProc"][0].update(
                    failOpen=True, processingMode={"request": {"body": "FullDuplexStreamed"}}
                ),
                "FullDuplexStreamed",
                id="failOpen with FullDuplexStreamed",
            ),
            pytest.param(
                "EnvoyExtensionPolicy",
                lambda spec: spec["extProc"][0].update(backendRef={"name": "pdrouter"}),
                "backendRef",
                id="backendRef beside backendRefs",
            ),
            pytest.param(
                "EnvoyExtensionPolicy",
                lambda spec: spec["targetRefs"][0].update(kind="Service"),
                "targetRef",
                id="a policy for a Service",
            ),
            pytest.param(
                "BackendTrafficPolicy",
                lambda spec: spec["loadBalancer"].update(type="DynamicModule"),
                "loadBalancer",
                id="endpointOverride with a dynamic module",
            ),
            pytest.param(
                "BackendTrafficPolicy",
                lambda spec: spec["loadBalancer"]["endpointOverride"]["extractFrom"].clear(),
                "extractFrom",
                id="no header to read",
            ),
            pytest.param(
                "ClientTrafficPolicy",
                lambda spec: spec["headers"].update(preserveXRequestID=True, requestID="Generate"),
                "preserveXRequestID",
                id="two that exclude each other",
            ),
            pytest.param(
                "ClientTrafficPolicy",
                lambda spec: spec["connection"].update(bufferLimit="lots"),
                "bufferLimit",
                id="no quantity",
            ),
            pytest.param(
                "HTTPRoute",
                lambda spec: spec["rules"][0].update(
                    timeouts={"request": "1s", "backendRequest": "2s"}
                ),
                "timeouts",
                id="backend timeout above the request's",
            ),
            pytest.param(
                "HTTPRoute",
                lambda spec: spec["rules"][0]["matches"][0]["path"].update(value="v1"),
                "path",
                id="path without a slash",
            ),
            pytest.param(
                "Gateway",
                lambda spec: spec["listeners"].append(spec["listeners"][0]),
                "listeners",
                id="two listeners of one name",
            ),
        ],
    )
    def test_at_custom_resources(
        self, kind: str, change: Callable[[Object], None], problem: str
    ) -> None:
        one = copy.deepcopy(find(build(DEPLOY / "overlays" / "envoy-gateway"), kind))
        assert find_problems(one) == []

        change(one["spec"])

        assert any(problem in found for found in find_problems(one))

    @needs_crds
    def test_at_a_version_that_a_crd_does_not_have(self) -> None:
        route = find(build(DEPLOY / "overlays" / "envoy-gateway"), "HTTPRoute")

        (found,) = find_problems({**route, "apiVersion": "gateway.networking.k8s.io/v9"})

        assert "no CRD" in found
