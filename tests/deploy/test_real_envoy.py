"""The real Envoy, configured as Envoy Gateway does it from our objects, in front of the router."""

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from envoy_gateway import translate
from envoy_gateway_clusters import ROUTER
from expectations import eventually, read_metrics
from manifests import DEPLOY, OVERLAYS, Object, build, compose, find
from manifests import environment as read_environment
from processes import RouterProcess
from raw_requests import POST_CHAT, send_frames

from pdrouter.openai.headers import (
    CONTROL_HEADERS,
    DESTINATION_ENDPOINT,
    MODEL,
    ROUTING_STRATEGY,
    TARGET_POD,
)
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig

MODEL_NAME = "llama31-8b"
CHAT = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
}
CHAT_PATH = "/v1/chat/completions"
KEY = "secret"
AUTHORIZATION = {"authorization": f"Bearer {KEY}"}
KEYED = list(AUTHORIZATION.items())
ROUTER_SERVICES = ("pdrouter", "aibrix-gateway-plugins")
POD_SERVICES = ("pdrouter-decode", MODEL_NAME)

pytestmark = pytest.mark.asyncio(loop_scope="module")

Build = Callable[[], list[Object]]

INSTALLATIONS: dict[str, Build] = {
    "endpoint-override": lambda: build(OVERLAYS[0]),
    "original-dst": lambda: compose(["envoy-gateway", "original-dst"], namespace="inference"),
    "aibrix": lambda: build(OVERLAYS[1]),
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A running installation.

    Attributes:
        stack: engines and a router.
        objects: what it is configured by.
        url: an Envoy in front of them.
    """

    stack: LocalStack
    objects: list[Object]
    url: str

    @property
    def served(self) -> int:
        """How many requests of clients have come to an engine."""
        engines = (*self.stack.prefill, *self.stack.decode)
        return sum(request.method == "POST" for engine in engines for request in engine.requests)

    def client(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=30, headers=headers)


def list_endpoints(stack: LocalStack, *routers: str) -> dict[str, list[str]]:
    """Return the addresses behind each Service; a model has one of its own, as with aibrix."""
    decode = [engine.address for engine in stack.decode]
    router = list(routers) or [f"127.0.0.1:{stack.router.server.port}"]
    return {**dict.fromkeys(ROUTER_SERVICES, router), **dict.fromkeys(POD_SERVICES, decode)}


@asynccontextmanager
async def install(objects: list[Object], **environment: str) -> AsyncIterator[Installed]:
    """Run engines, a router that wants a key, and an Envoy as the objects want it."""
    limits = {
        name: value
        for name, value in read_environment(find(objects, "Deployment")).items()
        if name.startswith("PDROUTER_MAX_")
    }
    variables = {"AIBRIX_AUTH_BEARER_TOKEN": KEY, **limits, **environment}
    async with run_stack(StackOptions(model=MODEL_NAME, environment=variables)) as stack:
        bootstrap = translate(objects, list_endpoints(stack))
        async with EnvoyProcess.run(bootstrap) as envoy:
            yield Installed(stack, objects, f"http://{envoy.listener}")


@pytest_asyncio.fixture(params=INSTALLATIONS, scope="module", loop_scope="module")
async def installed(request: pytest.FixtureRequest) -> AsyncIterator[Installed]:
    async with install(INSTALLATIONS[request.param]()) as running:
        yield running


# What a client may say in headers by which Envoy, here or in the setup guide, chooses a route or a
# pod; some in forms that are to be taken for the same.
CLIENT_HEADERS = [
    [],
    [(name, "127.0.0.1:9") for name in CONTROL_HEADERS],
    [(ROUTING_STRATEGY, "pd")],
    [(ROUTING_STRATEGY, "pd"), (TARGET_POD, "127.0.0.1:9"), (DESTINATION_ENDPOINT, "x")],
    [(MODEL, MODEL_NAME)],
    [("Model", MODEL_NAME), ("MODEL", MODEL_NAME)],
    [(MODEL, MODEL_NAME), (ROUTING_STRATEGY, "pd"), (TARGET_POD, "127.0.0.1:9")],
]


async def test_no_header_of_a_client_leads_past_the_router(installed: Installed) -> None:
    """Whoever comes past the router needs no key, and is not split."""
    async with installed.client() as client:
        for headers in CLIENT_HEADERS:
            refused = await client.post(CHAT_PATH, json=CHAT, headers=headers)
            assert refused.status_code == 401, headers
            for path in ("/v1/completions", "/v1/chat/completions/x", "//v1/chat/completions"):
                other = await client.post(path, json=CHAT, headers=headers)
                assert other.status_code == 401, (path, headers)

            answer = await client.post(CHAT_PATH, json=CHAT, headers=[*headers, *KEYED])
            assert answer.status_code == 200, headers
            assert answer.headers["x-pd-decision"] == "disaggregated"
            assert answer.headers["target-pod-ip"] in {
                engine.address for engine in installed.stack.decode
            }


async def test_a_kept_response_is_found_by_its_id(installed: Installed) -> None:
    body = {"model": MODEL_NAME, "input": "hi", "max_output_tokens": 9000, "background": True}
    async with installed.client(**AUTHORIZATION) as client:
        for _ in range(4):
            made = await client.post("/v1/responses", json=body)
            path, pod = f"/v1/responses/{made.json()['id']}", made.headers["target-pod-ip"]
            shown = await client.get(path)
            cancelled = await client.post(f"{path}/cancel")
            inputs = await client.get(f"{path}/input_items", params={"limit": 1})
            gone = await client.delete(path)
            for answer in (shown, cancelled, inputs, gone):
                assert (answer.status_code, answer.headers["target-pod-ip"]) == (200, pod)
            assert gone.json()["deleted"]
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/v1/responses/resp_1")).status_code == 404
    async with installed.client() as nobody:
        assert (await nobody.get(path)).status_code == 401


async def test_the_time_of_the_first_token_is_known(
    installed: Installed, request: pytest.FixtureRequest
) -> None:
    # aibrix's Envoy Gateway cannot let the router note which request a line of the log is of.
    tells = request.node.callspec.params["installed"] != "aibrix"
    counted = "pdrouter_time_to_first_token_seconds_count"
    before = (await read_metrics(installed.stack)).total(counted)
    async with installed.client(**AUTHORIZATION) as client:
        await client.post(CHAT_PATH, json=CHAT | {"stream": True})

    async def check() -> None:
        assert (await read_metrics(installed.stack)).total(counted) - before == tells

    await eventually(check)


async def test_a_client_may_still_ask_for_a_strategy(installed: Installed) -> None:
    async with installed.client(**AUTHORIZATION) as client:
        chosen = await client.post(CHAT_PATH, json=CHAT, headers={ROUTING_STRATEGY: "random"})
        unknown = await client.post(CHAT_PATH, json=CHAT, headers={ROUTING_STRATEGY: "magic"})

    assert chosen.headers["x-pd-decision"] == "aggregated;reason=strategy-random"
    assert unknown.status_code == 400
    assert unknown.json()["error"]["code"] == "invalid_routing_strategy"


async def test_without_a_strategy_a_request_goes_by_its_models_route() -> None:
    async with (
        install(INSTALLATIONS["aibrix"](), ROUTING_ALGORITHM="") as installed,
        installed.client() as client,
    ):
        refused = await client.post(CHAT_PATH, json=CHAT, headers={MODEL: MODEL_NAME})
        passed = await client.post(CHAT_PATH, json=CHAT, headers=AUTHORIZATION)
        embedding = {"model": MODEL_NAME, "input": "hi"}
        on_one_leg = await client.post("/v1/embeddings", json=embedding, headers=AUTHORIZATION)

    assert refused.status_code == 401
    assert (on_one_leg.status_code, on_one_leg.json()["model"]) == (200, MODEL_NAME)
    assert (passed.status_code, "target-pod" in passed.headers) == (200, False)


async def test_prefill_is_no_part_of_receiving_a_request() -> None:
    objects = copy.deepcopy(build(OVERLAYS[0]))
    timeouts = find(objects, "ClientTrafficPolicy")["spec"]["timeout"]["http"]
    timeouts["requestReceivedTimeout"] = "0.3s"
    slow = EngineConfig(role="prefill", prefill_tokens_per_s=2)

    async with run_stack(StackOptions(model=MODEL_NAME, prefill=(slow,))) as stack:
        bootstrap = translate(objects, list_endpoints(stack))
        async with (
            EnvoyProcess.run(bootstrap) as envoy,
            httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30) as client,
        ):
            answer = await client.post(CHAT_PATH, json=CHAT)

    assert answer.status_code == 200
    # Or the timeout was not put to the test.
    assert answer.json()["usage"]["prompt_tokens"] / slow.prefill_tokens_per_s > 0.3


async def test_the_router_answers_for_the_models(installed: Installed) -> None:
    async with installed.client(**AUTHORIZATION) as client:
        listed = await client.get("/v1/models")
        one = await client.get(f"/v1/models/{MODEL_NAME}")
        with_a_slash = await client.get("/v1/models/team%2Fmodel")

    assert [model["id"] for model in listed.json()["data"]] == [MODEL_NAME]
    assert one.json()["id"] == MODEL_NAME
    assert with_a_slash.status_code == 404
    assert "team/model" in with_a_slash.json()["error"]["message"]


async def test_what_is_not_served_is_the_routers_to_refuse(installed: Installed) -> None:
    async with installed.client(**AUTHORIZATION) as client:
        for path in ("/chat/completions", "/", "/v2/unheard-of"):
            answer = await client.post(path, json=CHAT)

            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")

        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        for path in ("/v1/realtime?model=m", "/v1/files", "/v1/videos/video_1"):
            answer = await client.get(path, headers=upgrade if "realtime" in path else {})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")
        admin = await client.post("/v1/load_lora_adapter", json={"lora_name": "x"})
        assert "ModelAdapter" in admin.json()["error"]["message"]


async def test_who_asks_for_health_gets_it_without_a_key(installed: Installed) -> None:
    async with installed.client() as client:
        answers = [await client.get(path) for path in ("/health", "/ping")]
        version = await client.get("/version", headers=AUTHORIZATION)

    assert [answer.status_code for answer in (*answers, version)] == [200] * 3
    assert version.json()["version"]


async def test_trailers_in_place_of_a_body_lead_to_no_pod(installed: Installed) -> None:
    """Envoy Gateway has no field for them: a patch does, or the router asks for them."""
    fields = [*POST_CHAT, *KEYED]
    address, served = installed.url.removeprefix("http://"), installed.served
    answer, body = await send_frames(address, fields, [("x-trailer", "of the client")])

    assert answer[":status"] == "400", body
    assert installed.served == served


async def test_many_headers_pass_or_are_too_many(installed: Installed) -> None:
    """What has no room for those of the router is refused before a prefill; a patch makes room."""
    many = {f"x-{number}": "1" for number in range(93)}
    patched = "PDROUTER_MAX_HEADERS" in read_environment(find(installed.objects, "Deployment"))
    served = installed.served
    async with installed.client(**AUTHORIZATION) as client:
        answer = await client.post(CHAT_PATH, json=CHAT, headers=many)

    assert answer.status_code == (200 if patched else 431)
    assert (installed.served > served) is patched


async def test_a_header_with_an_underscore_is_no_error(installed: Installed) -> None:
    async with installed.client(**AUTHORIZATION) as client:
        answer = await client.post(CHAT_PATH, json=CHAT, headers={"user_id": "7"})

    assert answer.status_code == 200


async def test_bodies_up_to_the_limit_pass_and_larger_ones_are_refused(
    installed: Installed,
) -> None:
    policy = find(installed.objects, "ClientTrafficPolicy")
    limit = policy["spec"]["connection"]["bufferLimit"]

    def say(length: int) -> dict[str, Any]:
        return {**CHAT, "messages": [{"role": "user", "content": "x" * length}]}

    async with installed.client(**AUTHORIZATION) as client:
        large = await client.post(CHAT_PATH, json=say(limit // 2))
        too_large = await client.post(CHAT_PATH, json=say(limit + 1))

    # The engine's own limit of tokens: it is an engine that has read it.
    assert large.status_code in {200, 400}
    assert too_large.status_code == 413


async def test_a_router_that_dies_costs_no_request() -> None:
    objects = build(OVERLAYS[0])
    async with AsyncExitStack() as running:
        stack = await running.enter_async_context(run_stack(StackOptions(model=MODEL_NAME)))
        environment = {"ROUTING_ALGORITHM": "pd", "PDROUTER_ENDPOINTS": str(stack.endpoints_file)}
        survivor, victim = [
            await running.enter_async_context(RouterProcess.serving(environment)) for _ in range(2)
        ]
        addresses = [str(router.grpc_address) for router in (survivor, victim)]
        bootstrap = translate(objects, list_endpoints(stack, *addresses))
        envoy = await running.enter_async_context(EnvoyProcess.run(bootstrap))
        client = await running.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30)
        )
        before = []

        async def expect_used() -> None:
            """Envoy draws lots: it has a connection to the victim once that has served one."""
            before.append(await client.post(CHAT_PATH, json=CHAT))
            assert victim.events("request")

        await eventually(expect_used)
        victim.process.kill()
        await victim.process.wait()

        async def expect_closed() -> None:
            """Envoy has seen it: a request on a connection that just ends would be lost."""
            page = await client.get(f"http://{envoy.admin}/stats?filter=cx_destroy_remote$")
            assert f"cluster.{ROUTER}.upstream_cx_destroy_remote: 0" not in page.text

        await eventually(expect_closed)
        after = [await client.post(CHAT_PATH, json=CHAT) for _ in range(40)]

    assert {answer.status_code for answer in (*before, *after)} == {200}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def podless() -> AsyncIterator[Installed]:
    objects = build(OVERLAYS[0])
    async with run_stack(StackOptions(model=MODEL_NAME)) as stack:
        endpoints = list_endpoints(stack)
        # Where nothing listens.
        endpoints["pdrouter-decode"] = ["127.0.0.1:9"]
        async with EnvoyProcess.run(translate(objects, endpoints)) as envoy:
            yield Installed(stack, objects, f"http://{envoy.listener}")


class TestErrorsOfEnvoy:
    """`json-errors`, which the installation with `endpoint-override` has."""

    async def test_they_are_json(self, podless: Installed) -> None:
        limit = find(podless.objects, "ClientTrafficPolicy")["spec"]["connection"]["bufferLimit"]
        async with podless.client() as client:
            too_large = await client.post(CHAT_PATH, content=b"x" * (limit + 1))
            unreachable = await client.post(CHAT_PATH, json=CHAT)

        for answer, status, code in (
            (too_large, 413, "request_too_large"),
            (unreachable, 503, "upstream_unavailable"),
        ):
            assert (answer.status_code, answer.headers["content-type"]) == (
                status,
                "application/json",
            )
            assert answer.json()["error"]["code"] == code

    async def test_those_of_the_router_stay_as_they_are(self, podless: Installed) -> None:
        async with podless.client() as client:
            answer = await client.post(CHAT_PATH, json={**CHAT, "model": "no-such"})

        assert answer.json()["error"]["code"] == "model_not_found"

    async def test_a_router_that_is_away_is_one(self) -> None:
        objects = build(OVERLAYS[0])
        away = {service: ["127.0.0.1:9"] for service in (*ROUTER_SERVICES, *POD_SERVICES)}
        async with (
            EnvoyProcess.run(translate(objects, away)) as envoy,
            httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30) as client,
        ):
            answer = await client.post(CHAT_PATH, json=CHAT)

        assert answer.json()["error"]["code"] == "router_unavailable"
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest_asyncio.fixture(
    params=["endpoint-override", "original-dst"], scope="module", loop_scope="module"
)
async def guarded(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    objects = [*INSTALLATIONS[request.param](), *build(DEPLOY / "examples" / "access")]
    async with run_stack(StackOptions(model=MODEL_NAME)) as stack:
        bootstrap = translate(objects, list_endpoints(stack))
        async with EnvoyProcess.run(bootstrap) as envoy:
            yield f"http://{envoy.listener}"


class TestAccess:
    """`examples/access`: keys of Envoy's, and CORS, in front of the router."""

    ORIGIN = "https://chat.example.com"

    async def test_no_header_leads_past_the_key(self, guarded: str) -> None:
        """A route that a patch adds knows nothing of a SecurityPolicy."""
        async with httpx.AsyncClient(base_url=guarded, timeout=30) as client:
            refused = [
                await client.post(CHAT_PATH, json=CHAT, headers=headers)
                for headers in CLIENT_HEADERS
            ]
            answer = await client.post(
                CHAT_PATH, json=CHAT, headers={"authorization": "Bearer key-of-alice"}
            )

        assert [one.status_code for one in refused] == [401] * len(CLIENT_HEADERS)
        assert (answer.status_code, answer.headers["x-pd-decision"]) == (200, "disaggregated")

    async def test_a_page_may_ask_from_its_origin_alone(self, guarded: str) -> None:
        asks = {"access-control-request-method": "POST"}
        async with httpx.AsyncClient(base_url=guarded, timeout=30) as client:
            preflight = await client.options(CHAT_PATH, headers={"origin": self.ORIGIN, **asks})
            foreign = await client.options(
                CHAT_PATH, headers={"origin": "https://evil.example", **asks}
            )
            answer = await client.post(
                CHAT_PATH,
                json=CHAT,
                headers={"origin": self.ORIGIN, "authorization": "Bearer key-of-alice"},
            )

        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == self.ORIGIN
        assert "access-control-allow-origin" not in foreign.headers
        assert answer.headers["access-control-allow-origin"] == self.ORIGIN
        assert "x-pd-decision" in answer.headers["access-control-expose-headers"]

    async def test_it_may_read_errors_whoever_gives_them(self, guarded: str) -> None:
        page = {"origin": "https://a.chat.example.com"}
        key = {"authorization": "Bearer key-of-alice"}
        async with httpx.AsyncClient(base_url=guarded, timeout=30, headers=page) as client:
            answers = {
                401: await client.post(CHAT_PATH, json=CHAT),
                404: await client.post(CHAT_PATH, json={**CHAT, "model": "absent"}, headers=key),
                413: await client.post(CHAT_PATH, content=b"x" * 2**24, headers=key),
            }

        for status, answer in answers.items():
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] in (page["origin"], "*")


@pytest.mark.parametrize("installation", ["endpoint-override", "original-dst"])
async def test_whom_envoy_denies_does_not_come_to_a_prefill(installation: str) -> None:
    """Envoy Gateway would put these rules behind the router, whose choice changes the route."""
    objects = INSTALLATIONS[installation]()
    (gateway,) = [one for one in objects if one["kind"] == "Gateway"]
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
    policy = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "SecurityPolicy",
        "metadata": {"name": "nobody", "namespace": gateway["metadata"]["namespace"]},
        "spec": {
            "targetRefs": [{**target, "name": gateway["metadata"]["name"]}],
            "authorization": {"defaultAction": "Deny"},
        },
    }
    async with install([*objects, policy]) as installed, installed.client() as client:
        for headers in CLIENT_HEADERS:
            answer = await client.post(CHAT_PATH, json=CHAT, headers=[*headers, *KEYED])
            assert answer.status_code == 403, headers
        assert installed.served == 0
