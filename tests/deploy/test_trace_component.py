"""The component for traces says what `pdrouter envoy-config --trace-collector` says."""

from betterproto2 import Casing
from manifests import Object, compose, find, settings_of

from pdrouter.tools.envoy_config import Address, EnvoyConfig
from pdrouter.tools.envoy_config.tracing import build_request_ids


def with_tracing() -> list[Object]:
    return compose(["envoy-gateway", "endpoint-override", "tracing"])


def test_the_router_and_envoy_tell_the_same_collector() -> None:
    objects = with_tracing()
    settings = settings_of(find(objects, "Deployment"))
    (backend,) = find(objects, "EnvoyProxy")["spec"]["telemetry"]["tracing"]["provider"][
        "backendRefs"
    ]
    assert settings.exports_traces
    assert settings.otlp_protocol == "grpc"
    assert settings.otlp_endpoint == f"http://{backend['name']}:{backend['port']}"


def test_envoy_leaves_the_id_of_a_request_as_the_router_gave_it() -> None:
    (patch,) = find(with_tracing(), "EnvoyPatchPolicy")["spec"]["jsonPatches"]
    address = Address("127.0.0.1", 4318)
    ours = build_request_ids(EnvoyConfig(routers=(address,), trace_collector=address))
    assert ours is not None
    assert patch["name"].endswith("/pdrouter/http")
    assert patch["operation"]["op"] == "add"
    assert patch["operation"]["path"].endswith("/typed_config/request_id_extension")
    assert patch["operation"]["value"] == ours.to_dict(casing=Casing.SNAKE)
