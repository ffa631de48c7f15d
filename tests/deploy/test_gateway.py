"""Envoy Gateway's objects say of timeouts, limits, paths and headers what the program says."""

import json
from typing import Any

import pytest
from manifests import (
    DEPLOY,
    OVERLAYS,
    Object,
    build,
    container,
    ext_proc,
    find,
    settings_of,
)

from pdrouter.engines.xdit.paths import PATHS as XDIT_PATHS
from pdrouter.openai.errors import encode_error
from pdrouter.openai.headers import (
    CLIENT_STRATEGY,
    DESTINATION_ENDPOINT,
    EARLY_HEADERS,
    MODEL,
    ROUTE_HEADERS,
    ROUTING_STRATEGY,
    TARGET_POD,
)
from pdrouter.openai.paths import ENDPOINTS, MODELS_PATH
from pdrouter.settings.choices import Routing
from pdrouter.tools.envoy_config import Address, EnvoyConfig
from pdrouter.tools.envoy_config.cors import (
    ALLOWED_HEADERS,
    ALLOWED_METHODS,
    EXPOSED_HEADERS,
    check_origins,
)

# What `pdrouter envoy-config` would say with the prefill timeout that the manifests set.
ENVOY = EnvoyConfig(routers=(Address("127.0.0.1", 50052),), prefill_timeout_s=590)
ENVOY_BREAKERS = ("maxConnections", "maxParallelRequests", "maxPendingRequests")


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def in_bytes(quantity: str | int) -> int:
    text = str(quantity)
    return int(text[:-2]) * 2**20 if text.endswith("Mi") else int(text)


def paths_of(route: Object) -> list[str]:
    return [
        match["path"]["value"]
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        if "headers" not in match and match["path"]["type"] == "PathPrefix"
    ]


def serves_all(route: Object) -> bool:
    return MODELS_PATH in paths_of(route)


def covers(path: str) -> Any:
    return lambda prefix: path == prefix or path.startswith(prefix + "/")


def routes_by_patch(one: Object) -> bool:
    return one["kind"] == "EnvoyPatchPolicy" and any(
        patch["type"].endswith(".Cluster") for patch in one["spec"]["jsonPatches"]
    )


def patch_value(policy: Object, kind: str) -> Object:
    """Return what a policy adds first of a kind."""
    value = next(
        patch["operation"]["value"]
        for patch in policy["spec"]["jsonPatches"]
        if patch["type"].endswith("." + kind)
    )
    assert isinstance(value, dict)
    return value


class TestTimeouts:
    def test_envoy_waits_for_a_message_longer_than_prefill_may_take(
        self, objects: list[Object]
    ) -> None:
        prefill = settings_of(find(objects, "Deployment")).prefill_timeout_s

        assert seconds(ext_proc(objects)["messageTimeout"]) > prefill == ENVOY.prefill_timeout_s

    def test_no_limit_cuts_a_long_answer(self, objects: list[Object]) -> None:
        served = [one for one in objects if one["kind"] == "HTTPRoute" and serves_all(one)]
        assert [rule["timeouts"] for one in served for rule in one["spec"]["rules"]] == [
            {"request": "0s"}
        ]
        for one in objects:
            if one["kind"] == "BackendTrafficPolicy":
                timeouts = one["spec"]["timeout"]["http"]
                assert timeouts["requestTimeout"] == "0s"
                assert "maxStreamDuration" not in timeouts
            if routes_by_patch(one):
                assert patch_value(one, "RouteConfiguration")["route"]["timeout"] == "0s"

    def test_kubernetes_waits_for_the_drain(self, objects: list[Object]) -> None:
        deployment = find(objects, "Deployment")
        settings = settings_of(deployment)
        grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

        assert grace > settings.lame_duck_s + settings.drain_s
        assert "lifecycle" not in container(deployment)

    def test_envoy_drains_as_long_as_the_router(self, objects: list[Object]) -> None:
        drain = find(objects, "EnvoyProxy")["spec"]["shutdown"]["drainTimeout"]

        assert seconds(drain) == settings_of(find(objects, "Deployment")).drain_s


class TestLimits:
    def test_envoy_refuses_a_body_before_the_router_would(self, objects: list[Object]) -> None:
        client = find(objects, "ClientTrafficPolicy")["spec"]

        assert in_bytes(client["connection"]["bufferLimit"]) == ENVOY.body_limit_bytes
        assert in_bytes(client["http2"]["initialStreamWindowSize"]) == ENVOY.body_limit_bytes

    def test_a_whole_message_fits_between_envoy_and_the_router(self, objects: list[Object]) -> None:
        limit = ext_proc(objects)["backendSettings"]["connection"]["bufferLimit"]

        assert in_bytes(limit) == settings_of(find(objects, "Deployment")).max_message_bytes

    def test_requests_in_flight_are_not_capped_at_envoys_defaults(
        self, objects: list[Object]
    ) -> None:
        breakers = [ext_proc(objects)["backendSettings"]["circuitBreaker"]]
        for one in objects:
            if one["kind"] == "BackendTrafficPolicy":
                breakers.append(one["spec"]["circuitBreaker"])
            if routes_by_patch(one):
                (threshold,) = patch_value(one, "Cluster")["circuit_breakers"]["thresholds"]
                names = ("max_connections", "max_requests", "max_pending_requests")
                breakers.append(
                    {ours: threshold[its] for ours, its in zip(ENVOY_BREAKERS, names, strict=True)}
                )

        assert len(breakers) == 2
        for breaker in breakers:
            assert {name: breaker[name] for name in ENVOY_BREAKERS} == dict.fromkeys(
                ENVOY_BREAKERS, ENVOY.max_concurrent_requests
            )

    def test_http2_connections_carry_as_many_streams(self, objects: list[Object]) -> None:
        streams = [
            ext_proc(objects)["backendSettings"]["http2"]["maxConcurrentStreams"],
            find(objects, "ClientTrafficPolicy")["spec"]["http2"]["maxConcurrentStreams"],
        ]

        assert set(streams) == {ENVOY.max_concurrent_requests}


class TestFilter:
    def test_bodies_of_requests_come_whole_and_those_of_responses_not_at_all(
        self, objects: list[Object]
    ) -> None:
        mode = ext_proc(objects)["processingMode"]

        assert mode["request"]["body"] == "Buffered"
        assert "body" not in mode["response"]

    def test_a_request_never_passes_the_router_by(self, objects: list[Object]) -> None:
        assert ext_proc(objects)["failOpen"] is False

    def test_the_router_may_change_the_mode(self) -> None:
        assert ext_proc(build(OVERLAYS[0]))["processingMode"]["allowModeOverride"] is True

    def test_it_covers_the_route_of_the_served_paths(self, objects: list[Object]) -> None:
        (target,) = find(objects, "EnvoyExtensionPolicy")["spec"]["targetRefs"]

        assert serves_all(find(objects, target["kind"], target["name"]))


class TestRoute:
    @pytest.fixture
    def prefixes(self, objects: list[Object]) -> list[str]:
        (route,) = [one for one in objects if one["kind"] == "HTTPRoute" and serves_all(one)]
        return paths_of(route)

    def test_every_served_path_is_covered(self, prefixes: list[str]) -> None:
        uncovered = [
            path for path in (*ENDPOINTS, MODELS_PATH) if not any(map(covers(path), prefixes))
        ]

        assert uncovered == []

    def test_what_is_not_served_is_at_the_lowest_rank(self, prefixes: list[str]) -> None:
        assert [path for path in prefixes if path not in {*ENDPOINTS, MODELS_PATH}] == ["/"]

    def test_a_models_own_route_is_as_specific(self, prefixes: list[str]) -> None:
        """A longer prefix would win over the route of a model, which aibrix makes by path."""
        inside = [path for path in prefixes if any(map(covers(path), set(prefixes) - {path}))]

        assert inside == []

    def test_what_has_no_strategy_goes_by_its_models_route_on_every_path(self) -> None:
        """Else it would meet the router's own route again, whose backend is none."""
        routes = [one for one in build(OVERLAYS[1]) if one["kind"] == "HTTPRoute"]
        (of_model,) = [route for route in routes if not serves_all(route)]
        (rule,) = of_model["spec"]["rules"]
        led = [match["path"]["value"] for match in rule["matches"]]
        known = {*ENDPOINTS, *XDIT_PATHS.values()}

        assert {match["headers"][0]["name"] for match in rule["matches"]} == {MODEL}
        assert [path for path in known if not any(map(covers(path), led))] == []
        assert [path for path in led if path not in known] == []


class TestWebPages:
    """`examples/access` and `pdrouter envoy-config --cors-origin` let pages do the same."""

    def test_they_may_send_and_read_the_same_headers(self) -> None:
        cors = find(build(DEPLOY / "examples" / "access"), "SecurityPolicy")["spec"]["cors"]

        assert tuple(cors["allowMethods"]) == ALLOWED_METHODS
        assert tuple(cors["allowHeaders"]) == ALLOWED_HEADERS
        assert tuple(cors["exposeHeaders"]) == EXPOSED_HEADERS
        check_origins(tuple(cors["allowOrigins"]), credentials=cors.get("allowCredentials", False))


class TestErrors:
    @pytest.fixture
    def rules(self) -> list[Object]:
        return list(find(build(OVERLAYS[0]), "BackendTrafficPolicy")["spec"]["responseOverride"])

    def test_they_are_those_of_the_api(self, rules: list[Object]) -> None:
        for rule in rules:
            (match,) = rule["match"]["statusCodes"]
            found = match["value"] if "value" in match else match["range"]["start"]
            status = rule["response"].get("statusCode", found)
            body = rule["response"]["body"]["inline"]
            error = json.loads(body)["error"]

            assert body == encode_error(status, error["code"], error["message"]).decode()
            assert "%" not in body

    def test_answers_of_the_router_are_none(self, rules: list[Object]) -> None:
        """They are JSON, and have another status than the one that stands for the router."""
        plain = [{"name": "content-type", "value": {"value": "text/plain"}}]
        (marked,) = [rule for rule in rules if "responseHeaders" not in rule["match"]]

        assert {rule["source"] for rule in rules} == {"Local"}
        assert all(
            rule["match"]["responseHeaders"] == plain for rule in rules if rule is not marked
        )
        (status,) = marked["match"]["statusCodes"]
        assert status["value"] == ext_proc(build(OVERLAYS[0]))["statusOnError"] == 510


class TestPodRouting:
    def test_control_headers_are_removed_before_any_filter_runs(
        self, objects: list[Object]
    ) -> None:
        headers = find(objects, "ClientTrafficPolicy")["spec"]["headers"]

        removed = headers["earlyRequestHeaders"]["remove"]
        assert removed == [*ROUTE_HEADERS, *EARLY_HEADERS]
        # As many as the Gateway API allows.
        assert len(removed) <= 16

    def test_routes_are_chosen_by_no_header_of_a_client(self, objects: list[Object]) -> None:
        headers = find(objects, "ClientTrafficPolicy")["spec"]["headers"]
        matched = {
            header["name"]
            for one in objects
            if one["kind"] == "HTTPRoute"
            for rule in one["spec"]["rules"]
            for match in rule["matches"]
            for header in match.get("headers", ())
        } | {
            header["name"]
            for one in objects
            if routes_by_patch(one)
            for header in patch_value(one, "RouteConfiguration")["match"]["headers"]
        }

        assert matched <= set(headers["earlyRequestHeaders"]["remove"])
        assert {(one["name"], one["value"]) for one in headers["earlyRequestHeaders"]["set"]} == {
            (CLIENT_STRATEGY, f"%REQ({ROUTING_STRATEGY})%")
        }

    def test_no_route_removes_headers(self, objects: list[Object]) -> None:
        """It would remove the router's own before a pod is chosen by them."""
        assert not [
            rule["filters"]
            for one in objects
            if one["kind"] == "HTTPRoute"
            for rule in one["spec"]["rules"]
            if "filters" in rule
        ]

    def test_endpoint_override_reads_the_routers_header(self) -> None:
        policy = find(build(OVERLAYS[0]), "BackendTrafficPolicy")["spec"]

        assert policy["loadBalancer"]["endpointOverride"] == {
            "extractFrom": [{"header": DESTINATION_ENDPOINT}]
        }
        retry = policy["retry"]
        assert (retry["numRetries"], retry["retryOn"]) == (
            1,
            {"triggers": ["connect-failure", "refused-stream"]},
        )

    def test_the_router_knows_how_envoy_reaches_pods(self) -> None:
        routings = {
            overlay: settings_of(find(build(overlay), "Deployment")).pod_routing
            for overlay in OVERLAYS[:2]
        }

        assert list(routings.values()) == [Routing.OVERRIDE_HOST, Routing.ORIGINAL_DST]

    def test_envoy_falls_back_to_decode_pods_only(self) -> None:
        objects = build(OVERLAYS[0])
        (backend,) = find(objects, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
        service = find(objects, "Service", backend["name"])["spec"]

        assert service["selector"] == {"role-name": "decode"}
        assert service["clusterIP"] == "None"
        assert [port["port"] for port in service["ports"]] == [backend["port"]]

    def test_original_dst_reads_the_routers_header(self) -> None:
        policy = find(build(OVERLAYS[1]), "EnvoyPatchPolicy", "aibrix-epp")
        cluster = patch_value(policy, "Cluster")
        route = patch_value(policy, "RouteConfiguration")

        assert cluster["original_dst_lb_config"] == {
            "use_http_header": True,
            "http_header_name": TARGET_POD,
        }
        assert route["route"]["cluster"] == cluster["name"]
        assert route["match"]["headers"] == [{"name": ROUTING_STRATEGY, "present_match": True}]
