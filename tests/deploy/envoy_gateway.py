"""What Envoy Gateway makes of the objects: the bootstrap of one Envoy, with real addresses.

Envoy Gateway is a Kubernetes controller, and no test needs it. What it does is written down here as
version 1.9.1 does it, as far as it matters to a request:

* routes stand in the order of the Gateway API's precedence, whatever object they are from;
* a filter is in the listener, but turned off; the routes that a policy targets turn it on;
* patches are put where they say, by the names of listener, route and cluster, or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import envoy_gateway_clusters as clusters
import envoy_gateway_filters as filters
import yaml
from envoy_gateway_patches import apply_patch
from manifests import Object, find

Endpoints = Mapping[str, Sequence[str]]
"""The addresses behind each Service."""

_MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network"
    ".http_connection_manager.v3.HttpConnectionManager"
)
_EARLY_MUTATION = (
    "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3"
    ".HeaderMutation"
)
_OTLP_LOG = (
    "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3"
    ".OpenTelemetryAccessLogConfig"
)
_ESCAPED_SLASHES = {
    "KeepUnchanged": "KEEP_UNCHANGED",
    "RejectRequest": "REJECT_REQUEST",
    "UnescapeAndForward": "UNESCAPE_AND_FORWARD",
    "UnescapeAndRedirect": "UNESCAPE_AND_REDIRECT",
}
_UNDERSCORES = {
    "Allow": "ALLOW",
    "RejectRequest": "REJECT_REQUEST",
    "DropHeader": "DROP_HEADER",
}
_PATH_RANKS = ("PathPrefix", "RegularExpression", "Exact")


def translate(objects: Sequence[Object], endpoints: Endpoints) -> str:
    """Return the bootstrap of an Envoy on a free port.

    Raises:
        LookupError: A patch names what is not there.
    """
    gateway = find(objects, "Gateway")
    (listener,) = gateway["spec"]["listeners"]
    name = "/".join((_namespace(gateway), gateway["metadata"]["name"], listener["name"]))
    resources = _make_resources(objects, endpoints, name)
    for policy in objects:
        if policy["kind"] == "EnvoyPatchPolicy":
            for patch in policy["spec"]["jsonPatches"]:
                apply_patch(resources, patch)
    made = resources["Listener"][name]
    manager = made["default_filter_chain"]["filters"][0]["typed_config"]
    manager["route_config"] = resources["RouteConfiguration"][name]
    return yaml.safe_dump(
        {
            "admin": {"address": made["address"]},
            "static_resources": {
                "listeners": [made],
                "clusters": list(resources["Cluster"].values()),
            },
        }
    )


def _make_resources(
    objects: Sequence[Object], endpoints: Endpoints, name: str
) -> dict[str, dict[str, Object]]:
    """Return what Envoy Gateway makes before any patch, by type and name."""
    routes = list(order_routes(objects))
    extensions = filters.make_filters(objects, clusters.ROUTER)
    return {
        "Listener": {name: _make_listener(name, objects, extensions)},
        "RouteConfiguration": {
            name: {
                "name": name,
                "virtual_hosts": [
                    {
                        "name": f"{name}/*",
                        "domains": ["*"],
                        "routes": [make_route(one, objects, extensions) for one in routes],
                    }
                ],
            }
        },
        "Cluster": {one["name"]: one for one in clusters.make_clusters(objects, endpoints, routes)},
    }


def order_routes(objects: Iterable[Object]) -> Iterator[Object]:
    """Yield the matches of all HTTPRoutes, the first to be tried first.

    Each has the route (`object`), its rule and the match.
    """
    entries = [
        {"object": route, "rule": rule, "match": match}
        for route in objects
        if route["kind"] == "HTTPRoute"
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    ]
    yield from sorted(entries, key=_precedence, reverse=True)


def _precedence(entry: Object) -> tuple[int, int, int, int]:
    match = entry["match"]
    path = match["path"]
    return (
        _PATH_RANKS.index(path["type"]),
        len(path["value"]),
        len(match.get("headers", ())),
        len(match.get("queryParams", ())),
    )


def make_route(entry: Object, objects: Sequence[Object], extensions: list[Object]) -> Object:
    """Return the Envoy route of a match, with the filters on that policies want for it."""
    path, rule = entry["match"]["path"], entry["rule"]
    matched: Object = {"headers": [_match_header(one) for one in entry["match"].get("headers", ())]}
    if path["type"] == "Exact":
        matched["path"] = path["value"]
    elif path["value"] == "/":
        matched["prefix"] = "/"
    else:
        matched["path_separated_prefix"] = path["value"]
    traffic = clusters.find_traffic(objects).get(entry["object"]["metadata"]["name"], {})
    retry = traffic.get("retry")
    return {
        "match": matched,
        "route": {
            "cluster": clusters.name_backend(rule["backendRefs"][0]["name"]),
            "timeout": rule["timeouts"]["request"],
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            **({} if retry is None else {"retry_policy": filters.make_retry_policy(retry)}),
        },
        "typed_per_filter_config": filters.turn_on(entry["object"], objects, extensions),
    }


def _match_header(header: Object) -> Object:
    assert header.get("type", "Exact") == "Exact"
    return {"name": header["name"], "string_match": {"exact": header["value"]}}


def _make_access_logs(objects: Iterable[Object]) -> list[Object]:
    """Return the logs that go to the router, over OpenTelemetry."""
    telemetry = [
        one["spec"].get("telemetry", {}).get("accessLog", {})
        for one in objects
        if one["kind"] == "EnvoyProxy"
    ]
    return [
        {
            "name": "envoy.access_loggers.open_telemetry",
            "typed_config": {
                "@type": _OTLP_LOG,
                "common_config": {
                    "log_name": "otel_envoy_accesslog",
                    "grpc_service": {"envoy_grpc": {"cluster_name": clusters.ROUTER}},
                    "transport_api_version": "V3",
                },
                "body": {"string_value": setting["format"]["text"]},
            },
        }
        for log in telemetry
        for setting in log.get("settings", ())
        for sink in setting["sinks"]
        if sink["type"] == "OpenTelemetry"
    ]


def _make_listener(name: str, objects: Sequence[Object], extensions: list[Object]) -> Object:
    client = find(objects, "ClientTrafficPolicy")["spec"]
    headers, timeouts = client.get("headers", {}), client["timeout"]["http"]
    path = client.get("path", {})
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "http",
        "access_log": _make_access_logs(objects),
        **(
            {"stream_idle_timeout": timeouts["streamIdleTimeout"]}
            if "streamIdleTimeout" in timeouts
            else {}
        ),
        "request_timeout": timeouts["requestReceivedTimeout"],
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": _ESCAPED_SLASHES[
            path.get("escapedSlashesAction", "UnescapeAndRedirect")
        ],
        "common_http_protocol_options": {
            "headers_with_underscores_action": _UNDERSCORES[
                headers.get("withUnderscoresAction", "RejectRequest")
            ]
        },
        "http2_protocol_options": {
            "initial_stream_window_size": client["http2"]["initialStreamWindowSize"],
            "max_concurrent_streams": client["http2"]["maxConcurrentStreams"],
        },
        "early_header_mutation_extensions": [
            {"name": "early", "typed_config": _make_early_mutation(headers)}
        ],
        "http_filters": [
            *({key: one[key] for key in filters.FIELDS if key in one} for one in extensions),
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            },
        ],
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "per_connection_buffer_limit_bytes": client["connection"]["bufferLimit"],
        "default_filter_chain": {"filters": [{"name": "http", "typed_config": manager}]},
    }


def _make_early_mutation(headers: Object) -> Object:
    early = headers.get("earlyRequestHeaders", {})
    overwrite = "OVERWRITE_IF_EXISTS_OR_ADD"
    return {
        "@type": _EARLY_MUTATION,
        "mutations": [
            *(
                {
                    "append": {
                        "header": {"key": one["name"], "value": one["value"]},
                        "append_action": overwrite,
                    }
                }
                for one in early.get("set", ())
            ),
            *({"remove": one} for one in early.get("remove", ())),
        ],
    }


def _namespace(one: Object) -> str:
    namespace = one["metadata"].get("namespace", "default")
    assert isinstance(namespace, str)
    return namespace
