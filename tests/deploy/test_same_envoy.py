"""What `pdrouter envoy-config` writes and what the manifests come to is one Envoy, but for a few
differences with a reason."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from envoy_gateway import translate
from manifests import OVERLAYS, Object, build, compose

from pdrouter.openai.headers import EARLY_HEADERS, ROUTE_HEADERS
from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml

ROUTERS = ("127.0.0.1:1", "127.0.0.1:2")
PODS = ("127.0.0.1:3",)
ENDPOINTS = {
    "pdrouter": ROUTERS,
    "aibrix-gateway-plugins": ROUTERS,
    "pdrouter-decode": PODS,
    "llama31-8b": PODS,
}

# With what the manifests set for the router, and with each way to the chosen pod.
PREFILL_TIMEOUT_S = 590


def ours(routing: Routing) -> Object:
    config = EnvoyConfig(
        routers=tuple(map(Address.parse, ROUTERS)),
        prefill_timeout_s=PREFILL_TIMEOUT_S,
        routing=routing,
        decode=tuple(map(Address.parse, PODS)) if routing is Routing.OVERRIDE_HOST else (),
    )
    return load(to_yaml(build_bootstrap(config)))


def load(bootstrap: str) -> Object:
    loaded = yaml.safe_load(bootstrap)
    assert isinstance(loaded, dict)
    return loaded


def seconds(duration: str | None) -> float | None:
    return None if duration is None else float(duration.removesuffix("s"))


def read(bootstrap: Object) -> dict[str, Any]:
    """Return what decides how an Envoy serves the router, by name; None is Envoy's default."""
    resources = bootstrap["static_resources"]
    (listener,) = resources["listeners"]
    chain = listener.get("default_filter_chain") or listener["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    (ext_proc,) = [
        one["typed_config"]
        for one in manager["http_filters"]
        if one["name"].startswith("envoy.filters.http.ext_proc")
    ]
    clusters = {one["name"]: one for one in resources["clusters"]}
    router = clusters[ext_proc["grpc_service"]["envoy_grpc"]["cluster_name"]]
    (pods,) = [one for one in resources["clusters"] if find_choice(one)]
    common = read_http(pods).get("common_http_protocol_options", {})
    return {
        **read_manager(manager),
        **read_ext_proc(ext_proc),
        **read_router(router),
        "pod choice": find_choice(pods),
        "pod breakers": read_breakers(pods),
        "pod idle timeout": seconds(common.get("idle_timeout")),
        "pod headers": [common.get("max_headers_count"), common.get("max_response_headers_kb")],
    }


def read_manager(manager: Object) -> dict[str, Any]:
    common = manager.get("common_http_protocol_options", {})
    (early,) = manager["early_header_mutation_extensions"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    to_router = [
        one
        for one in routes
        if one.get("typed_per_filter_config") and one["match"].get("prefix") == "/"
    ] or routes
    return {
        "stream window": manager["http2_protocol_options"]["initial_stream_window_size"],
        "streams": manager["http2_protocol_options"]["max_concurrent_streams"],
        "silent stream": seconds(manager["stream_idle_timeout"]),
        "whole response": seconds(to_router[0]["route"]["timeout"]),
        "retry of requests": read_retry(to_router[0]["route"].get("retry_policy")),
        "removed early": {
            one["remove"] for one in early["typed_config"]["mutations"] if "remove" in one
        },
        "underscores": common.get("headers_with_underscores_action", "ALLOW"),
        "escaped slashes": manager.get("path_with_escaped_slashes_action", "KEEP_UNCHANGED"),
        "headers": [common.get("max_headers_count"), manager.get("max_request_headers_kb")],
    }


def read_retry(policy: Object | None) -> list[Any]:
    if policy is None:
        return []
    back_off = policy["retry_back_off"]
    return [
        policy["retry_on"],
        policy["num_retries"],
        *(seconds(back_off[f"{end}_interval"]) for end in ("base", "max")),
    ]


def read_ext_proc(ext_proc: Object) -> dict[str, Any]:
    retry = ext_proc["grpc_service"]["retry_policy"]
    back_off = retry["retry_back_off"]
    mode = ext_proc["processing_mode"]
    return {
        "retry on": retry["retry_on"],
        "retries": retry["num_retries"],
        "retry back-off": [seconds(back_off[f"{end}_interval"]) for end in ("base", "max")],
        "message timeout": seconds(ext_proc["message_timeout"]),
        "fail open": ext_proc.get("failure_mode_allow", False),
        "mode override": ext_proc.get("allow_mode_override", False),
        "request headers": mode["request_header_mode"],
        "request body": mode["request_body_mode"],
        "request trailers": mode["request_trailer_mode"],
        "response headers": mode["response_header_mode"],
        "response body": mode.get("response_body_mode", "NONE"),
        "response attributes": ext_proc.get("response_attributes", []),
    }


def read_router(router: Object) -> dict[str, Any]:
    (check,) = router["health_checks"]
    explicit = read_http(router)["explicit_http_config"]
    return {
        "router breakers": read_breakers(router),
        "router retries at a time": router["circuit_breakers"]["thresholds"][0]["max_retries"],
        "router streams": explicit["http2_protocol_options"]["max_concurrent_streams"],
        "router panic": router.get("common_lb_config", {})
        .get("healthy_panic_threshold", {})
        .get("value"),
        "router balancing": "LEAST_REQUEST"
        if "LeastRequest" in str(router.get("load_balancing_policy"))
        else router["lb_policy"],
        "router check": "grpc_health_check" in check,
        "router check times": [seconds(check[name]) for name in ("interval", "timeout")],
        "router check counts": [
            check[name] for name in ("unhealthy_threshold", "healthy_threshold")
        ],
    }


def read_http(cluster: Object) -> Object:
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert isinstance(options, dict)
    return options


def read_breakers(cluster: Object) -> list[int]:
    (threshold,) = cluster["circuit_breakers"]["thresholds"]
    return [threshold[f"max_{name}"] for name in ("connections", "pending_requests", "requests")]


def find_choice(cluster: Object) -> str:
    """Return the header by which a cluster takes the chosen pod; nothing if it takes none."""
    if "original_dst_lb_config" in cluster:
        return str(cluster["original_dst_lb_config"]["http_header_name"])
    for policy in cluster.get("load_balancing_policy", {}).get("policies", ()):
        for source in policy["typed_extension_config"]["typed_config"].get(
            "override_host_sources", ()
        ):
            return str(source["header"])
    return ""


# Why a value is another one on Kubernetes, and which.
REASONS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "removed early": (
        "there are several routes, and headers by which one is chosen; a list has 16 members",
        lambda _, theirs: theirs == {*EARLY_HEADERS, *ROUTE_HEADERS},
    ),
    "retries": (
        "no rule against drawing the same router again: more draws",
        lambda ours, theirs: theirs > ours,
    ),
    "router streams": (
        "the circuit breaker answers before a connection is full",
        lambda ours, theirs: abs(ours - theirs) <= 1,
    ),
    "message timeout": ("a round number", lambda ours, theirs: 0 <= theirs - ours <= 5),
    "silent stream": ("a round number", lambda ours, theirs: 0 <= theirs - ours <= 5),
}
WITHOUT_PATCHES: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "request trailers": (
        "no field; the router asks for them",
        lambda _, theirs: theirs == "SKIP",
    ),
    "headers": ("no field; see listener-patch", lambda _, theirs: theirs == [None, None]),
    "pod headers": ("no field", lambda _, theirs: theirs == [None, None]),
}
AIBRIX: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "mode override": ("came with Envoy Gateway 1.3", lambda ours, theirs: ours and not theirs),
    "response attributes": ("came with Envoy Gateway 1.3", lambda _, theirs: theirs == []),
    "router panic": ("came with Envoy Gateway 1.3", lambda _, theirs: theirs is None),
}
PATCHED = ["envoy-gateway", "original-dst", "listener-patch"]


@pytest.mark.parametrize(
    ("routing", "make", "reasons"),
    [
        pytest.param(
            Routing.OVERRIDE_HOST,
            lambda: build(OVERLAYS[0]),
            {**REASONS, **WITHOUT_PATCHES},
            id="endpoint-override",
        ),
        pytest.param(
            Routing.ORIGINAL_DST,
            lambda: compose(PATCHED, namespace="inference"),
            REASONS,
            id="original-dst",
        ),
        pytest.param(
            Routing.ORIGINAL_DST, lambda: build(OVERLAYS[1]), {**REASONS, **AIBRIX}, id="aibrix"
        ),
    ],
)
def test_they_are_the_same(
    routing: Routing,
    make: Callable[[], list[Object]],
    reasons: dict[str, tuple[str, Callable[[Any, Any], bool]]],
) -> None:
    here, there = read(ours(routing)), read(load(translate(make(), ENDPOINTS)))

    unexplained = {
        name: (here[name], there[name])
        for name in here
        if here[name] != there[name]
        and not (name in reasons and reasons[name][1](here[name], there[name]))
    }
    assert unexplained == {}
    assert {name for name in reasons if here[name] == there[name]} == set()
