"""Retry policies: those that would send a KV handle twice are found, wherever they stand."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from setups import Case, Change, codes, endpoint_override, examine, original_dst, put, setting

from pdrouter.cli import main
from pdrouter.tools.doctor.retry_policies import find_policies
from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml

BY_LIST = setting("PDROUTER_POD_ROUTING", "override-host")
CLUSTER = "spec jsonPatches 0 operation value"
ROUTE = "spec jsonPatches 1 operation value"
SAFE: dict[str, Any] = {
    "numRetries": 1,
    "retryOn": {"triggers": ["connect-failure", "refused-stream", "reset-before-request"]},
}

UNSAFE_TRIGGERS = (
    "5xx",
    "gateway-error",
    "reset",
    "retriable-4xx",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
)


def retry(policy: dict[str, Any]) -> Change:
    return put("BackendTrafficPolicy", "spec retry", policy)


def triggered(*triggers: str, **members: Any) -> Change:
    return retry({"numRetries": 1, "retryOn": {"triggers": [*triggers], **members}})


BROKEN = [
    *(
        Case(
            "handle-sent-twice",
            "BackendTrafficPolicy default/llm",
            [triggered("connect-failure", trigger), BY_LIST],
            words=f"again after {trigger}",
        )
        for trigger in UNSAFE_TRIGGERS
    ),
    Case(
        "handle-sent-twice",
        "BackendTrafficPolicy default/llm",
        [retry({"numRetries": 1}), BY_LIST],
        words="retriable-status-codes",
    ),
    Case(
        "handle-sent-twice",
        "BackendTrafficPolicy default/llm",
        [triggered("connect-failure", httpStatusCodes=[503]), BY_LIST],
        words="httpStatusCodes",
    ),
    Case(
        "handle-sent-twice",
        "BackendTrafficPolicy default/llm",
        [retry({**SAFE, "perRetry": {"timeout": "10s"}}), BY_LIST],
        words="ends after 10s",
    ),
    Case(
        "handle-sent-twice",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 retry", {"codes": [502, 503], "attempts": 2})],
        words="502, 503",
    ),
    Case(
        "handle-sent-twice",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 retry", {})],
        words="an engine's error",
    ),
    Case(
        "handle-sent-twice",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyPatchPolicy", f"{ROUTE} route retry_policy", {"retry_on": "5xx,reset"})],
        "original_dst",
        words="5xx, reset",
    ),
    Case(
        "handle-sent-twice",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyPatchPolicy", f"{ROUTE} route retryPolicy", {"retryOn": "gateway-error"})],
        "original_dst",
    ),
    Case(
        "handle-sent-twice",
        "EnvoyPatchPolicy default/router",
        [
            put(
                "EnvoyPatchPolicy",
                f"{ROUTE} route",
                {
                    "cluster": "chosen-pod",
                    "timeout": "0s",
                    "retry_policy": {"retry_on": "connect-failure", "per_try_timeout": "5s"},
                    "hedge_policy": {"hedge_on_per_try_timeout": True},
                },
            )
        ],
        "original_dst",
        words="5s",
    ),
    Case(
        "handle-sent-twice",
        "EnvoyPatchPolicy default/router",
        [
            put(
                "EnvoyPatchPolicy",
                f"{CLUSTER} typed_extension_protocol_options",
                {"http": {"retry_policy": {"retry_on": "5xx"}}},
            )
        ],
        "original_dst",
    ),
    Case(
        "handle-sent-twice",
        "EnvoyPatchPolicy default/router",
        [
            put(
                "EnvoyPatchPolicy",
                "spec jsonPatches 2",
                {
                    "type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                    "name": "default/llm/http",
                    "operation": {
                        "op": "add",
                        "path": "/virtual_hosts/0/retry_policy",
                        "value": {"retry_on": "5xx"},
                    },
                },
            )
        ],
        "original_dst",
    ),
    Case(
        "retry-falls-back",
        "BackendTrafficPolicy default/llm",
        [retry({**SAFE, "numRetries": 3}), BY_LIST],
        words="beyond the two pods",
    ),
    Case(
        "retry-falls-back",
        "BackendTrafficPolicy default/llm",
        [retry(SAFE)],
        words="PDROUTER_POD_ROUTING",
    ),
    Case("second-pod-unused", "BackendTrafficPolicy default/llm", [BY_LIST]),
    Case(
        "pod-list-unread",
        "EnvoyPatchPolicy default/router",
        [
            put(
                "EnvoyPatchPolicy",
                f"{CLUSTER} original_dst_lb_config http_header_name",
                "x-gateway-destination-endpoint",
            ),
            BY_LIST,
        ],
        "original_dst",
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=[case.code for case in BROKEN])
def test_what_sends_a_handle_twice_or_astray_is_found(case: Case) -> None:
    assert case.judge() == case.expected


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [retry(SAFE), BY_LIST],
        [retry({"numRetries": 0, "retryOn": {"triggers": ["5xx"]}})],
        [put("HTTPRoute", "spec rules 0 retry", {"codes": [500], "attempts": 0})],
    ],
)
def test_what_never_arrived_may_be_sent_again(changes: list[Change]) -> None:
    assert codes(examine(endpoint_override(), *changes)) == set()


def test_how_the_router_is_called_is_nobody_elses_business() -> None:
    """What a filter asks itself holds no handle."""
    filters = {
        "type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "default/llm/http",
        "operation": {
            "op": "add",
            "path": "/default_filter_chain/filters/0/typed_config/http_filters/0",
            "value": {"typed_config": {"grpc_service": {"retry_policy": {"retry_on": "5xx"}}}},
        },
    }
    found = examine(original_dst(), put("EnvoyPatchPolicy", "spec jsonPatches 2", filters))
    assert "handle-sent-twice" not in codes(found)


ROUTERS = (Address("127.0.0.1", 50052),)


@pytest.mark.parametrize("routing", Routing)
def test_the_configuration_that_we_write_is_safe(routing: Routing) -> None:
    decode = (Address("10.0.0.1", 8000),) if routing is Routing.OVERRIDE_HOST else ()
    config = EnvoyConfig(routers=ROUTERS, routing=routing, decode=decode)
    assert list(find_policies(yaml.safe_load(to_yaml(build_bootstrap(config))))) == []


def write(path: Path, **route: Any) -> Path:
    """Write an Envoy's bootstrap, with more in its route."""
    bootstrap = yaml.safe_load(to_yaml(build_bootstrap(EnvoyConfig(routers=ROUTERS))))
    (listener,) = bootstrap["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"].update(route)
    path.write_text(yaml.safe_dump(bootstrap))
    return path


def test_an_envoy_of_ones_own_is_looked_at_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "envoy.yaml")
    assert main(["doctor", "--envoy", str(file)]) == 0
    assert "0 errors" in capsys.readouterr().out
    write(file, retryPolicy={"retryOn": "5xx,connect-failure", "numRetries": 2})
    assert main(["doctor", "--envoy", str(file)]) == 1
    said = capsys.readouterr().out
    assert "handle-sent-twice" in said
    assert "route_config.virtual_hosts[0].routes[0].route.retry_policy.retry_on" in said
    assert str(file) in said


@pytest.mark.parametrize("text", ["a: [", "- 1", "apiVersion: v1\nkind: Service", None])
def test_what_is_no_configuration_of_envoy_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    file = tmp_path / "envoy.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["doctor", "--envoy", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
