"""The real Envoy, configured as Envoy Gateway does it from our objects, reaches the chosen pod.

Envoy Gateway itself is a Kubernetes controller; what it makes of the objects, and only as far as it
matters here, is written down in `translate`: the filter is there but turned off, routes turn it on,
patches are put where they say.
"""

import copy
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import yaml
from manifests import OVERLAYS, Object, build, compose, ext_proc, find

from pdrouter.envoy_process import EnvoyProcess
from pdrouter.extproc.headers import CONTROL_HEADERS, DESTINATION_ENDPOINT, TARGET_POD
from pdrouter.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.simulation.config import EngineConfig

MODEL = "llama31-8b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ROUTER_CLUSTER = "router"
DECODE_CLUSTER = "decode"
EXT_PROC = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"


def translate(objects: list[Object], router_port: int, decode: list[str]) -> str:
    """Return the bootstrap of an Envoy; `decode` are the endpoints of the decode pods' Service."""
    policies = {one["kind"]: one for one in objects}
    clusters = [make_router_cluster(router_port)]
    backend = ROUTER_CLUSTER
    if "BackendTrafficPolicy" in policies:
        clusters.append(make_decode_cluster(policies["BackendTrafficPolicy"]["spec"], decode))
        backend = DECODE_CLUSTER
    name = name_filter(policies["EnvoyExtensionPolicy"])
    routes = make_routes(objects, backend, name)
    if "EnvoyPatchPolicy" in policies:
        patches = policies["EnvoyPatchPolicy"]["spec"]["jsonPatches"]
        cluster, route = (patch["operation"] for patch in patches)
        clusters.append(cluster["value"])
        assert route["path"] == "/virtual_hosts/0/routes/0"
        routes.insert(0, route["value"])
    filters: list[Object] = [
        {"name": name, "disabled": True, "typed_config": make_ext_proc(ext_proc(objects))},
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            },
        },
    ]
    listener = make_listener(policies["ClientTrafficPolicy"]["spec"], routes, filters)
    return yaml.safe_dump(
        {
            "admin": {"address": listener["address"]},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        }
    )


def name_filter(policy: Object) -> str:
    metadata = policy["metadata"]
    path = (metadata.get("namespace", "default"), metadata["name"])
    return "envoy.filters.http.ext_proc/envoyextensionpolicy/{}/{}/extproc/0".format(*path)


def make_routes(objects: list[Object], backend: str, filter_name: str) -> list[Object]:
    turned_on = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
    return [
        {
            "match": {"prefix": match["path"]["value"]},
            "route": {"cluster": backend, "timeout": rule["timeouts"]["request"]},
            "typed_per_filter_config": {filter_name: turned_on},
        }
        for route in objects
        if route["kind"] == "HTTPRoute" and route["metadata"]["name"] != f"{MODEL}-router"
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    ]


def make_listener(client: Object, routes: list[Object], filters: list[Object]) -> Object:
    removal = {
        "@type": "type.googleapis.com/envoy.extensions.http"
        ".early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [
            {"remove": header} for header in client["headers"]["earlyRequestHeaders"]["remove"]
        ],
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "stream_idle_timeout": client["timeout"]["http"]["streamIdleTimeout"],
        "request_timeout": client["timeout"]["http"]["requestReceivedTimeout"],
        "http2_protocol_options": {
            "initial_stream_window_size": client["http2"]["initialStreamWindowSize"]
        },
        "early_header_mutation_extensions": [{"name": "early", "typed_config": removal}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    }
    return {
        "name": "http",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "per_connection_buffer_limit_bytes": client["connection"]["bufferLimit"],
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def make_ext_proc(processor: Object) -> Object:
    mode = processor["processingMode"]
    return {
        "@type": EXT_PROC,
        "grpc_service": {"envoy_grpc": {"cluster_name": ROUTER_CLUSTER}, "timeout": "10s"},
        "failure_mode_allow": processor["failOpen"],
        "message_timeout": processor["messageTimeout"],
        "allow_mode_override": mode.get("allowModeOverride", False),
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": mode["request"]["body"].upper(),
            "response_header_mode": "SEND",
            "response_body_mode": mode["response"].get("body", "None").upper(),
        },
        "response_attributes": mode["response"].get("attributes", []),
    }


def make_router_cluster(port: int) -> Object:
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": ROUTER_CLUSTER,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "load_assignment": assign(ROUTER_CLUSTER, [f"127.0.0.1:{port}"]),
    }


def make_decode_cluster(policy: Object, decode: list[str]) -> Object:
    prefix = "type.googleapis.com/envoy.extensions.load_balancing_policies"
    fallback = {"@type": f"{prefix}.least_request.v3.LeastRequest"}
    override = {
        "@type": f"{prefix}.override_host.v3.OverrideHost",
        "override_host_sources": policy["loadBalancer"]["endpointOverride"]["extractFrom"],
        "fallback_policy": {
            "policies": [{"typed_extension_config": {"name": "fallback", "typed_config": fallback}}]
        },
    }
    return {
        "name": DECODE_CLUSTER,
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": {"name": "override", "typed_config": override}}]
        },
        "load_assignment": assign(DECODE_CLUSTER, decode),
    }


def assign(cluster: str, addresses: list[str]) -> Object:
    hosts = [address.rpartition(":") for address in addresses]
    return {
        "cluster_name": cluster,
        "endpoints": [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {
                                "socket_address": {"address": host, "port_value": int(port)}
                            }
                        }
                    }
                    for host, _, port in hosts
                ]
            }
        ],
    }


@pytest.fixture(
    params=[
        pytest.param(lambda: build(OVERLAYS[0]), id="endpoint-override"),
        pytest.param(lambda: compose(["envoy-gateway", "original-dst"]), id="original-dst"),
        pytest.param(lambda: build(OVERLAYS[1]), id="aibrix"),
    ]
)
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[tuple[LocalStack, str]]:
    """Engines and a router, and the URL of an Envoy in front of them as the objects want it."""
    objects = request.param()
    async with run_stack(StackOptions(model=MODEL)) as stack:
        decode = [engine.address for engine in stack.decode]
        bootstrap = translate(objects, stack.router.server.port, decode)
        async with EnvoyProcess.run(bootstrap) as envoy:
            yield stack, f"http://{envoy.listener}"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param(dict.fromkeys(CONTROL_HEADERS, "127.0.0.1:9"), id="control"),
        pytest.param({"routing-strategy": "pd"}, id="strategy"),
        pytest.param(
            {"routing-strategy": "pd", TARGET_POD: "127.0.0.1:9", DESTINATION_ENDPOINT: "x"},
            id="strategy and control",
        ),
    ],
)
async def test_a_request_is_split_whatever_headers_a_client_sends(
    gateway: tuple[LocalStack, str], headers: dict[str, str]
) -> None:
    stack, url = gateway

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answers = [
            await client.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(4)
        ]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.headers["x-pd-decision"] for answer in answers} == {"disaggregated"}
    assert {answer.headers["target-pod-ip"] for answer in answers} <= {
        engine.address for engine in stack.decode
    }


async def test_prefill_is_no_part_of_receiving_a_request() -> None:
    objects = copy.deepcopy(build(OVERLAYS[0]))
    timeouts = find(objects, "ClientTrafficPolicy")["spec"]["timeout"]["http"]
    timeouts["requestReceivedTimeout"] = "0.3s"
    slow = EngineConfig(role="prefill", prefill_tokens_per_s=2)

    async with run_stack(StackOptions(model=MODEL, prefill=(slow,))) as stack:
        decode = [engine.address for engine in stack.decode]
        bootstrap = translate(objects, stack.router.server.port, decode)
        async with (
            EnvoyProcess.run(bootstrap) as envoy,
            httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30) as client,
        ):
            answer = await client.post("/v1/chat/completions", json=CHAT)

    assert answer.status_code == 200
    # Or the timeout was not put to the test.
    assert answer.json()["usage"]["prompt_tokens"] / slow.prefill_tokens_per_s > 0.3


async def test_the_router_answers_for_the_models(gateway: tuple[LocalStack, str]) -> None:
    _, url = gateway

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        listed = await client.get("/v1/models")
        one = await client.get(f"/v1/models/{MODEL}")

    assert [model["id"] for model in listed.json()["data"]] == [MODEL]
    assert one.json()["id"] == MODEL


async def test_bodies_up_to_the_limit_pass_and_larger_ones_are_refused(
    gateway: tuple[LocalStack, str],
) -> None:
    _, url = gateway
    limit = find(build(OVERLAYS[0]), "ClientTrafficPolicy")["spec"]["connection"]["bufferLimit"]

    def say(length: int) -> dict[str, Any]:
        return {**CHAT, "messages": [{"role": "user", "content": "x" * length}]}

    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        large = await client.post("/v1/chat/completions", json=say(limit // 2))
        too_large = await client.post("/v1/chat/completions", json=say(limit + 1))

    # The engine's own limit of tokens: it is an engine that has read it.
    assert large.status_code in {200, 400}
    assert too_large.status_code == 413
