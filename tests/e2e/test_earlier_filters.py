"""Filters before ext_proc that answer by themselves, as Envoy Gateway puts them there."""

import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PATIENCE_S,
    PREFILL,
    chat,
    count_received,
    eventually,
    expect_disaggregated,
    expect_settled,
    read_metrics,
)
from listeners import Edit, find_ext_proc, http_filter, put_before, run_listeners
from loopback import Server, listen

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
ALWAYS = {"numerator": 100, "denominator": "HUNDRED"}
EVERYBODY = {"principals": [{"any": True}], "permissions": [{"any": True}]}
HASH = base64.b64encode(hashlib.sha1(b"secret").digest()).decode()
KEYS = {"keys": [{"kty": "oct", "kid": "k", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldA"}]}
LUA = """
function envoy_on_request(handle)
  if handle:headers():get("x-let-in") == nil then
    handle:respond({[":status"] = "403", ["x-said-by"] = "lua"}, "not with lua")
  end
end
"""


def add_cors(manager: dict[str, Any]) -> None:
    put_before(http_filter("cors", "cors.v3.Cors"))(manager)
    manager["route_config"]["virtual_hosts"][0]["typed_per_filter_config"] = {
        "envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": "https://chat.example"}],
            "allow_methods": "POST",
            "allow_headers": "authorization,content-type",
        }
    }


def add_rate_limit(manager: dict[str, Any]) -> None:
    put_before(
        http_filter(
            "ratelimit",
            "ratelimit.v3.RateLimit",
            domain="models",
            failure_mode_deny=True,
            status_on_error={"code": "ServiceUnavailable"},
            rate_limit_service={
                "grpc_service": {"envoy_grpc": {"cluster_name": "nowhere"}},
                "transport_api_version": "V3",
            },
        )
    )(manager)
    manager["route_config"]["virtual_hosts"][0]["rate_limits"] = [
        {"actions": [{"generic_key": {"descriptor_value": "all"}}]}
    ]


OAUTH2 = http_filter(
    "oauth2",
    "oauth2.v3.OAuth2",
    config={
        "token_endpoint": {"uri": "http://127.0.0.1/t", "cluster": "pods", "timeout": "1s"},
        "authorization_endpoint": "https://login.example/authorize",
        "redirect_uri": "https://gateway.example/callback",
        "redirect_path_matcher": {"path": {"exact": "/callback"}},
        "signout_path": {"path": {"exact": "/signout"}},
        "credentials": {
            "client_id": "router",
            "token_secret": {"name": "token"},
            "hmac_secret": {"name": "hmac"},
        },
    },
)
SECRETS = [
    {"name": name, "generic_secret": {"secret": {"inline_string": "secret"}}}
    for name in ("token", "hmac")
]


@dataclass(frozen=True)
class Case:
    """A filter, and a request that it answers.

    Attributes:
        edit: puts the filter before ext_proc.
        status: its answer's status.
        method: the request's method.
        headers: the request's headers.
        admitted: headers with which a request passes; None if none does.
        said: a header of the answer.
    """

    edit: Edit
    status: int
    method: str = "POST"
    headers: Mapping[str, str] | None = None
    admitted: Mapping[str, str] | None = None
    said: tuple[str, str] | None = None


NOWHERE = {
    "name": "nowhere",
    "load_assignment": {"cluster_name": "nowhere"},
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    },
}
"""A cluster for gRPC without an endpoint."""

PREFLIGHT = {
    "origin": "https://chat.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization",
}
CASES = {
    "cors": Case(
        add_cors,
        200,
        method="OPTIONS",
        headers=PREFLIGHT,
        admitted={"origin": "https://chat.example"},
        said=("access-control-allow-origin", "https://chat.example"),
    ),
    "rbac": Case(
        put_before(
            http_filter(
                "rbac",
                "rbac.v3.RBAC",
                rules={"action": "DENY", "policies": {"everybody": EVERYBODY}},
            )
        ),
        403,
    ),
    "ext_authz over HTTP": Case(
        put_before(
            http_filter(
                "ext_authz",
                "ext_authz.v3.ExtAuthz",
                http_service={
                    "server_uri": {
                        "uri": "http://127.0.0.1",
                        "cluster": "authorization",
                        "timeout": "10s",
                    },
                    "authorization_response": {
                        "allowed_client_headers": {"patterns": [{"exact": "x-said-by"}]}
                    },
                },
                allowed_headers={"patterns": [{"exact": "x-let-in"}]},
            )
        ),
        401,
        admitted={"x-let-in": "1"},
        said=("x-said-by", "authorization"),
    ),
    "ext_authz over gRPC, away": Case(
        put_before(
            http_filter(
                "ext_authz",
                "ext_authz.v3.ExtAuthz",
                grpc_service={"envoy_grpc": {"cluster_name": "nowhere"}},
                transport_api_version="V3",
                status_on_error={"code": "ServiceUnavailable"},
            )
        ),
        503,
    ),
    "ratelimit, away": Case(add_rate_limit, 503),
    "api_key_auth": Case(
        put_before(
            http_filter(
                "api_key_auth",
                "api_key_auth.v3.ApiKeyAuth",
                credentials=[{"key": "secret", "client": "c"}],
                key_sources=[{"header": "x-key"}],
            )
        ),
        401,
        admitted={"x-key": "secret"},
    ),
    "basic_auth": Case(
        put_before(
            http_filter(
                "basic_auth",
                "basic_auth.v3.BasicAuth",
                users={"inline_string": f"user:{{SHA}}{HASH}"},
            )
        ),
        401,
        admitted={"authorization": "Basic " + base64.b64encode(b"user:secret").decode()},
        said=("www-authenticate", 'Basic realm="'),
    ),
    "jwt_authn": Case(
        put_before(
            http_filter(
                "jwt_authn",
                "jwt_authn.v3.JwtAuthentication",
                providers={"p": {"issuer": "i", "local_jwks": {"inline_string": json.dumps(KEYS)}}},
                rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "p"}}],
            )
        ),
        401,
        said=("www-authenticate", "Bearer realm="),
    ),
    "local_ratelimit": Case(
        put_before(
            http_filter(
                "local_ratelimit",
                "local_ratelimit.v3.LocalRateLimit",
                stat_prefix="limit",
                token_bucket={"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
                filter_enabled={"default_value": ALWAYS},
                filter_enforced={"default_value": ALWAYS},
                status={"code": 429},
                response_headers_to_add=[{"header": {"key": "x-said-by", "value": "limit"}}],
            )
        ),
        429,
        said=("x-said-by", "limit"),
    ),
    "fault": Case(
        put_before(
            http_filter(
                "fault",
                "fault.v3.HTTPFault",
                abort={"header_abort": {}, "percentage": ALWAYS},
            )
        ),
        418,
        headers={"x-envoy-fault-abort-request": "418"},
        admitted={},
    ),
    "lua": Case(
        put_before(http_filter("lua", "lua.v3.Lua", default_source_code={"inline_string": LUA})),
        403,
        admitted={"x-let-in": "1"},
        said=("x-said-by", "lua"),
    ),
    "health_check": Case(
        put_before(
            http_filter(
                "health_check",
                "health_check.v3.HealthCheck",
                pass_through_mode=False,
                headers=[{"name": "x-probe", "string_match": {"exact": "1"}}],
            )
        ),
        200,
        headers={"x-probe": "1"},
        admitted={},
    ),
    "buffer": Case(
        put_before(http_filter("buffer", "buffer.v3.Buffer", max_request_bytes=16)), 413
    ),
    "oauth2": Case(put_before(OAUTH2), 302, said=("location", "https://login.example/")),
    "an upgrade that is not enabled": Case(
        lambda manager: None,
        403,
        headers={"connection": "upgrade", "upgrade": "websocket"},
        admitted={},
    ),
}


async def authorize(server: Server, reader: Any, writer: Any) -> None:
    """Let in who says so."""
    while True:
        request = await server.read(reader)
        status = "200 OK" if "x-let-in" in request.headers else "401 Unauthorized"
        writer.write(
            f"HTTP/1.1 {status}\r\nx-said-by: authorization\r\ncontent-length: 2\r\n\r\nno".encode()
        )


def stream_bodies(edit: Edit, manager: dict[str, Any], *, override: bool) -> None:
    edit(manager)
    ext_proc = find_ext_proc(manager)
    ext_proc["processing_mode"]["response_body_mode"] = "STREAMED"
    ext_proc["processing_mode"]["response_trailer_mode"] = "SEND"
    ext_proc["allow_mode_override"] = override


VARIANTS: dict[str, Callable[[Edit], Edit]] = {
    "": lambda edit: edit,
    " with response bodies": lambda edit: partial(stream_bodies, edit, override=False),
    " with response bodies turned off": lambda edit: partial(stream_bodies, edit, override=True),
}


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(prefill=PREFILL, decode=DECODE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listeners(stack: LocalStack) -> AsyncIterator[Mapping[str, str]]:
    edits = {
        name + variant: wrap(case.edit)
        for variant, wrap in VARIANTS.items()
        for name, case in CASES.items()
    }
    async with listen(authorize) as authorization:
        host, port = authorization.address.split(":")
        socket = {"socket_address": {"address": host, "port_value": int(port)}}
        cluster = {
            "name": "authorization",
            "load_assignment": {
                "cluster_name": "authorization",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}],
            },
        }
        async with run_listeners(
            stack, edits, {"clusters": [cluster, NOWHERE], "secrets": SECRETS}
        ) as addresses:
            yield addresses


async def count_local_replies(stack: LocalStack) -> float:
    metrics = await read_metrics(stack)
    return metrics.total("pdrouter_requests_total", outcome="local-reply")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.strip() or "plain")
@pytest.mark.parametrize("name", CASES)
async def test_its_answer_passes_untouched(
    stack: LocalStack,
    listeners: Mapping[str, str],
    name: str,
    variant: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    case = CASES[name]
    counted, received = await count_local_replies(stack), count_received(stack)
    async with httpx.AsyncClient(
        base_url=f"http://{listeners[name + variant]}", timeout=PATIENCE_S
    ) as client:
        if name == "local_ratelimit":
            expect_disaggregated(stack, await client.post(CHAT, json=chat()))
            received = count_received(stack)
        ask = partial(client.request, url=CHAT, headers=case.headers, json=chat())
        response = await ask(case.method)
        assert response.status_code == case.status, response.text
        assert "x-request-id" not in response.headers
        if case.said is not None:
            header, value = case.said
            assert response.headers[header].startswith(value)
        head = await ask("HEAD")
        if name not in ("cors", "buffer"):
            assert (head.status_code, head.content) == (case.status, b"")
        assert count_received(stack) == received
        if case.admitted is not None:
            admitted = await client.post(CHAT, json=chat(), headers=case.admitted)
            expect_disaggregated(stack, admitted)

    async def check() -> None:
        assert await count_local_replies(stack) > counted

    await eventually(check)
    await expect_settled(stack)
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]
