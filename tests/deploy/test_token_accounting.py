"""Envoy tells the router of requests, and counts tokens, as `pdrouter envoy-config` has it do."""

from collections.abc import Callable

import pytest
from betterproto2 import Casing
from manifests import OVERLAYS, Object, build, compose, container, ext_proc, find, settings_of

from pdrouter.extproc.access_log.entries import FORMAT, FORMAT_WITH_USAGE
from pdrouter.serving.answers import ROUTER_NAMESPACE
from pdrouter.settings.choices import FIRST_TOKEN, TokenObservation
from pdrouter.tools.envoy_config.token_accounting import build_token_filters


def with_accounting() -> list[Object]:
    return compose(["envoy-gateway", "endpoint-override", "token-accounting"])


def by_default() -> list[Object]:
    return build(OVERLAYS[0])


def test_the_router_expects_the_log() -> None:
    assert settings_of(find(by_default(), "Deployment")).observe_tokens == FIRST_TOKEN
    counted = settings_of(find(with_accounting(), "Deployment")).observe_tokens
    assert counted == TokenObservation.parse("access-log")


def test_envoy_has_the_filters_in_their_order() -> None:
    patches = find(with_accounting(), "EnvoyPatchPolicy")["spec"]["jsonPatches"]
    filters: list[Object] = []
    for patch in patches:
        assert patch["type"].endswith(".Listener")
        assert patch["operation"]["op"] == "add"
        assert patch["operation"]["path"].endswith("/http_filters/0")
        filters.insert(0, patch["operation"]["value"])

    assert filters == [one.to_dict(casing=Casing.SNAKE) for one in build_token_filters()]


@pytest.mark.parametrize(
    ("make", "line"), [(by_default, FORMAT), (with_accounting, FORMAT_WITH_USAGE)]
)
class TestLog:
    def test_the_router_may_note_which_request_an_entry_is_of(
        self, make: Callable[[], list[Object]], line: str
    ) -> None:
        del line
        assert ext_proc(make())["metadata"] == {"writableNamespaces": [ROUTER_NAMESPACE]}

    def test_envoy_sends_it_to_the_routers_grpc_port(
        self, make: Callable[[], list[Object]], line: str
    ) -> None:
        objects = make()
        settings = find(objects, "EnvoyProxy")["spec"]["telemetry"]["accessLog"]["settings"]
        assert [sink["type"] for one in settings for sink in one["sinks"]] == [
            "File",
            "OpenTelemetry",
        ]
        told = settings[1]
        (backend,) = told["sinks"][0]["openTelemetry"]["backendRefs"]

        assert told["format"] == {"type": "Text", "text": line}
        assert [backend] == ext_proc(objects)["backendRefs"]
        ports = {
            port["name"]: port["containerPort"]
            for port in container(find(objects, "Deployment"))["ports"]
        }
        assert backend["port"] == ports["grpc"]
