"""The HTTP filters that Envoy Gateway makes of policies, and where it turns them on."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from manifests import Object

_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_EXTENSIONS}.filters.http"
_TURNED_ON = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}

FIELDS = ("name", "disabled", "typed_config")
"""What of a filter is for Envoy; the rest says on which routes it is on."""


def make_filters(objects: Sequence[Object], router_cluster: str) -> list[Object]:
    """Return the filters in their order, each with the policy (`of`) that wants it.

    Their ranks are Envoy Gateway's; an EnvoyProxy may want another order.
    """
    by_kind = {kind: [one for one in objects if one["kind"] == kind] for kind in _MAKERS}
    made = [
        filter_
        for kind, make in _MAKERS.items()
        for policy in by_kind[kind]
        for filter_ in make(policy, router_cluster)
    ]
    for proxy in objects:
        if proxy["kind"] == "EnvoyProxy":
            for position in proxy["spec"].get("filterOrder", ()):
                _move_after(made, position["name"], position["after"])
    return sorted(made, key=lambda one: one["rank"])


def _move_after(made: Iterable[Object], moved: str, other: str) -> None:
    """Give a filter its place in a `filterOrder`, if there is the other one too."""
    ranks = [one["rank"] for one in made if one["name"].startswith(other)]
    for one in made if ranks else ():
        if one["name"].startswith(moved):
            one["rank"] = max(*ranks, one["rank"]) + 0.5


def turn_on(
    route: Object, objects: Sequence[Object], extensions: Iterable[Object]
) -> dict[str, Object]:
    """Return the configuration that turns filters on, for a route that their policies target."""
    gateways = {
        one["metadata"]["name"]: one["metadata"]["name"]
        for one in objects
        if one["kind"] == "Gateway"
    }
    names = {("HTTPRoute", route["metadata"]["name"]), *(("Gateway", name) for name in gateways)}
    return {
        one["name"]: one.get("per_route", _TURNED_ON)
        for one in extensions
        if any((ref["kind"], ref["name"]) in names for ref in one["of"]["spec"]["targetRefs"])
    }


def _make_ext_proc(policy: Object, router_cluster: str) -> list[Object]:
    (processor,) = policy["spec"]["extProc"]
    mode, settings = processor["processingMode"], processor.get("backendSettings", {})
    service: Object = {"envoy_grpc": {"cluster_name": router_cluster}, "timeout": "10s"}
    if "retry" in settings:
        service["retry_policy"] = make_retry_policy(settings["retry"])
    config: Object = {
        "@type": f"{_FILTERS}.ext_proc.v3.ExternalProcessor",
        "grpc_service": service,
        "failure_mode_allow": processor["failOpen"],
        "message_timeout": processor["messageTimeout"],
        "allow_mode_override": mode.get("allowModeOverride", False),
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": mode["request"]["body"].upper(),
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SEND",
            "response_body_mode": mode["response"].get("body", "None").upper(),
            "response_trailer_mode": "SKIP",
        },
        "response_attributes": mode["response"].get("attributes", []),
    }
    if "statusOnError" in processor:
        config["status_on_error"] = {"code": processor["statusOnError"]}
    if "metadata" in processor:
        namespaces = processor["metadata"]["writableNamespaces"]
        config["metadata_options"] = {"receiving_namespaces": {"untyped": namespaces}}
    metadata = policy["metadata"]
    path = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    name = f"envoy.filters.http.ext_proc/envoyextensionpolicy/{path}/extproc/0"
    return [{"name": name, "disabled": True, "typed_config": config, "of": policy, "rank": 100}]


def make_retry_policy(retry: Object) -> Object:
    """Return the retry policy that `retry` of a backend means."""
    back_off = retry["perRetry"]["backOff"]
    return {
        "num_retries": retry["numRetries"],
        "retry_on": ",".join(retry["retryOn"]["triggers"]),
        "retry_back_off": {
            "base_interval": in_seconds(back_off["baseInterval"]),
            "max_interval": in_seconds(back_off["maxInterval"]),
        },
    }


def _make_custom_responses(policy: Object, _: str) -> list[Object]:
    if "responseOverride" not in policy["spec"]:
        return []
    matchers = [_make_matcher(rule) for rule in policy["spec"]["responseOverride"]]
    metadata = policy["metadata"]
    path = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    config = {
        "@type": f"{_FILTERS}.custom_response.v3.CustomResponse",
        "custom_response_matcher": {"matcher_list": {"matchers": matchers}},
    }
    name = f"envoy.filters.http.custom_response/backendtrafficpolicy/{path}"
    return [{"name": name, "disabled": True, "typed_config": config, "of": policy, "rank": 0}]


def _make_matcher(rule: Object) -> Object:
    (status,) = rule["match"]["statusCodes"]
    predicates = [
        _match_range(status["range"]) if "range" in status else _match_status(status["value"]),
        *(
            _match_input("HttpResponseHeaderMatchInput", one["value"]["value"], one["name"])
            for one in rule["match"].get("responseHeaders", ())
        ),
    ]
    if rule.get("source") == "Local":
        predicates.append(_match_input("HttpResponseLocalReplyMatchInput", "true"))
    return {
        "predicate": {"and_matcher": {"predicate": predicates}},
        "on_match": {
            "action": {"name": "response", "typed_config": _make_response(rule["response"])}
        },
    }


def _make_response(response: Object) -> Object:
    assert response["body"]["type"] == "Inline"
    headers = [
        {"name": "Content-Type", "value": response["contentType"]},
        *response.get("header", {}).get("set", ()),
    ]
    made: Object = {
        "@type": f"{_EXTENSIONS}.http.custom_response.local_response_policy.v3.LocalResponsePolicy",
        "body_format": {"text_format": response["body"]["inline"]},
        "response_headers_to_add": [
            {
                "header": {"key": one["name"], "value": one["value"]},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for one in headers
        ],
    }
    if "statusCode" in response:
        made["status_code"] = response["statusCode"]
    return made


def _match_status(status: int) -> Object:
    return _match_input("HttpResponseStatusCodeMatchInput", str(status))


def _match_range(status: Object) -> Object:
    """Match all statuses of a class, which is what our ranges are."""
    start, end = status["start"], status["end"]
    assert (start % 100, end) == (0, start + 99)
    name = "HttpResponseStatusCodeClassMatchInput"
    return _match_input(name, f"{start // 100}xx")


def _match_input(name: str, value: str, header: str | None = None) -> Object:
    config: Object = {"@type": f"type.googleapis.com/envoy.type.matcher.v3.{name}"}
    if header is not None:
        config["header_name"] = header
    single = {"input": {"name": name, "typed_config": config}, "value_match": {"exact": value}}
    return {"single_predicate": single}


def _make_security(policy: Object, _: str) -> list[Object]:
    spec = policy["spec"]
    made = []
    if "cors" in spec:
        made.append(("cors", "Cors", 3, _make_cors_policy(spec["cors"])))
    if "apiKeyAuth" in spec:
        made.append(("api_key_auth", "ApiKeyAuth", 7, _make_keys(spec["apiKeyAuth"])))
    if "authorization" in spec:
        made.append(("rbac", "RBAC", 301, _make_rbac(spec["authorization"])))
    return [
        {
            "name": f"envoy.filters.http.{name}",
            # Without a route's own configuration this one lets all pass, and is never off.
            "disabled": name != "rbac",
            "typed_config": {"@type": f"{_FILTERS}.{name}.v3.{message}"},
            "per_route": config,
            "of": policy,
            "rank": rank,
        }
        for name, message, rank, config in made
    ]


def _make_cors_policy(cors: Object) -> Object:
    return {
        "@type": f"{_FILTERS}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [_match_origin(origin) for origin in cors["allowOrigins"]],
        "allow_methods": ", ".join(cors["allowMethods"]),
        "allow_headers": ", ".join(cors["allowHeaders"]),
        "expose_headers": ", ".join(cors["exposeHeaders"]),
        "max_age": str(int(cors["maxAge"].removesuffix("h")) * 3600),
        "allow_credentials": cors.get("allowCredentials", False),
        "forward_not_matching_preflights": False,
    }


def _match_origin(origin: str) -> Object:
    if "*" not in origin:
        return {"exact": origin}
    return {"safe_regex": {"regex": re.escape(origin).replace(r"\*", ".*")}}


def _make_keys(auth: Object) -> Object:
    """Return what the filter gets; the keys are those of a Secret, here each client's own name."""
    return {
        "@type": f"{_FILTERS}.api_key_auth.v3.ApiKeyAuthPerRoute",
        "credentials": [{"client": "alice", "key": "key-of-alice"}],
        "key_sources": [
            {"header": header} for source in auth["extractFrom"] for header in source["headers"]
        ],
        "forwarding": {
            "header": auth["forwardClientIDHeader"],
            "hide_credentials": auth["sanitize"],
        },
    }


def _make_rbac(authorization: Object) -> Object:
    """Return what denies all requests, as far as our tests need it."""
    assert authorization == {"defaultAction": "Deny"}
    denial = {
        "@type": "type.googleapis.com/envoy.config.rbac.v3.Action",
        "name": "DENY",
        "action": "DENY",
    }
    return {
        "@type": f"{_FILTERS}.rbac.v3.RBACPerRoute",
        "rbac": {"matcher": {"on_no_match": {"action": {"name": "all", "typed_config": denial}}}},
    }


def in_seconds(duration: str) -> str:
    """Return a duration of the Gateway API as protobuf has it."""
    if duration.endswith("ms"):
        return f"{int(duration.removesuffix('ms')) / 1000}s"
    return duration


_MAKERS: dict[str, Any] = {
    "BackendTrafficPolicy": _make_custom_responses,
    "SecurityPolicy": _make_security,
    "EnvoyExtensionPolicy": _make_ext_proc,
}
