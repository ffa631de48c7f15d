"""The component for token accounting says what `pdrouter envoy-config` says."""

from betterproto2 import Casing
from manifests import Object, compose, container, ext_proc, find, settings_of

from pdrouter.serving.answers import ROUTER_NAMESPACE
from pdrouter.tools.envoy_config.token_accounting import LOG_NAME, build_token_filters


def with_accounting() -> list[Object]:
    return compose(["envoy-gateway", "endpoint-override", "token-accounting"])


def test_the_router_expects_the_log() -> None:
    assert settings_of(find(with_accounting(), "Deployment")).observe_tokens.access_log


def test_envoy_has_the_filters_in_their_order() -> None:
    patches = find(with_accounting(), "EnvoyPatchPolicy")["spec"]["jsonPatches"]
    filters: list[Object] = []
    for patch in patches:
        assert patch["type"].endswith(".Listener")
        assert patch["operation"]["op"] == "add"
        assert patch["operation"]["path"].endswith("/http_filters/0")
        filters.insert(0, patch["operation"]["value"])

    assert filters == [one.to_dict(casing=Casing.SNAKE) for one in build_token_filters()]


def test_the_router_may_note_which_request_an_entry_is_of() -> None:
    assert ext_proc(with_accounting())["metadata"] == {"writableNamespaces": [ROUTER_NAMESPACE]}


def test_envoy_sends_its_log_to_the_routers_grpc_port() -> None:
    objects = with_accounting()
    settings = find(objects, "EnvoyProxy")["spec"]["telemetry"]["accessLog"]["settings"]
    sinks = [sink for setting in settings for sink in setting["sinks"]]
    (als,) = [sink["als"] for sink in sinks if sink["type"] == "ALS"]

    assert (als["type"], als["logName"]) == ("HTTP", LOG_NAME)
    assert als["backendRefs"] == ext_proc(objects)["backendRefs"]
    assert [sink["type"] for sink in sinks] == ["File", "ALS"]
    ports = {
        port["name"]: port["containerPort"]
        for port in container(find(objects, "Deployment"))["ports"]
    }
    assert als["backendRefs"][0]["port"] == ports["grpc"]
