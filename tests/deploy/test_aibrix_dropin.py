"""What aibrix's samples and guides make is served by the overlay: its pods, headers and routes.

The pods are as its controllers make them of a StormService, a RayClusterFleet, a Deployment and a
ModelAdapter of its samples.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aibrix_names import read_rows
from aiohttp import web
from aiohttp.test_utils import TestServer
from envoy_gateway import translate
from expectations import eventually
from fakekube import FakeApiServer, make_pod
from loopback import claim_network
from manifests import OVERLAYS, Object, build, environment, find
from redis_server import PROGRAM, RedisServer, needs_redis, run_redis

from pdrouter.settings.choices import STRATEGY_NAMES
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Pods serve at port 8000: addresses of their own let two runs share a machine.
NETWORK = f"{claim_network()}.7"
SPLIT, FLEET, WHOLE, ADAPTER = "qwen3-8B", "qwen-coder-7b-instruct", "deepseek-r1", "lora-1"
STORM = "stormservice.orchestration.aibrix.ai"
CHAT = "/v1/chat/completions"

# What aibrix's own manifests set, beside references to its pod: the overlay is applied over them.
AIBRIX_ENVIRONMENT = {
    "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "50",
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": "60",
    "AIBRIX_PREFIX_CACHE_TOKENIZER_TYPE": "character",
    "AIBRIX_PREFIX_CACHE_BLOCK_SIZE": "128",
    "AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT": "16",
    "AIBRIX_PREFIX_CACHE_STANDARD_DEVIATION_FACTOR": "2",
    "AIBRIX_PROMPT_LENGTH_BUCKETING": "true",
    "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES": "4194304",
}

PROFILES = json.dumps(
    {
        "defaultProfile": "least",
        "profiles": {
            "least": {"routingStrategy": "least-request"},
            "long": {"routingStrategy": "random", "routingConfig": {"promptTokensGte": 200}},
        },
    }
)
COMBINED = json.dumps(
    {
        "profiles": {
            "default": {
                "routingStrategy": "pd",
                "routingConfig": {"combined": True, "promptLenBucketMinLength": 1000},
            }
        }
    }
)
PAIRED = json.dumps(
    {
        "profiles": {
            "default": {
                "routingStrategy": "pd",
                "routingConfig": {"promptLenBucketMaxLength": 999},
            }
        }
    }
)


def label(model: str, **others: str) -> dict[str, str]:
    return {"model.aibrix.ai/name": model, "model.aibrix.ai/port": "8000", **others}


def storm(role: str, group: str = "0") -> dict[str, str]:
    """Return the labels that the StormService controller adds."""
    return {
        "storm-service-name": "vllm-1p1d",
        "roleset-name": "vllm-1p1d-roleset-x7k2p",
        "role-name": role,
        f"{STORM}/role-replica-index": "0",
        f"{STORM}/pod-group-index": group,
    }


CONFIG = "model.aibrix.ai/config"
# Name, labels, annotations. Each has an address of its own, in this order.
PODS: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = [
    ("storm-prefill-0", label(SPLIT, **storm("prefill")), {CONFIG: PAIRED}),
    ("storm-prefill-1", label(SPLIT, **storm("prefill", "1")), {CONFIG: PAIRED}),
    ("storm-decode-0", label(SPLIT, **storm("decode")), {CONFIG: PAIRED}),
    ("storm-decode-1", label(SPLIT, **storm("decode", "1")), {CONFIG: PAIRED}),
    ("storm-all-0", label(SPLIT, **storm("all")), {CONFIG: COMBINED}),
    ("fleet-head", label(FLEET, **{"ray.io/node-type": "head"}), {}),
    ("fleet-worker", label(FLEET, **{"ray.io/node-type": "worker"}), {}),
    ("deepseek-0", label(WHOLE, environment="production", tier="a"), {CONFIG: PROFILES}),
    ("deepseek-1", label(WHOLE, environment="production", tier="b"), {CONFIG: PROFILES}),
    ("deepseek-2", label(WHOLE, environment="staging", tier="a"), {CONFIG: PROFILES}),
]
ROLES = {"storm-prefill-0": "prefill", "storm-decode-0": "decode"}

FLEET_ROUTE: Object = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": f"{FLEET}-router", "namespace": "aibrix-system"},
    "spec": {
        "parentRefs": [{"name": "aibrix-eg", "namespace": "aibrix-system"}],
        "rules": [
            {
                "matches": [
                    {
                        "path": {"type": "PathPrefix", "value": path},
                        "headers": [{"name": "model", "type": "Exact", "value": FLEET}],
                    }
                    for path in ("/v1/completions", CHAT)
                ],
                "backendRefs": [{"name": FLEET, "namespace": "default", "port": 8000}],
                "timeouts": {"request": "120s"},
            }
        ],
    },
    "status": {
        "parents": [
            {
                "conditions": [
                    {"type": "Accepted", "reason": "Accepted", "status": "True"},
                    {"type": "ResolvedRefs", "reason": "ResolvedRefs", "status": "True"},
                ]
            }
        ]
    },
}
LORA: Object = {
    "apiVersion": "model.aibrix.ai/v1alpha1",
    "kind": "ModelAdapter",
    "metadata": {"name": ADAPTER, "namespace": "default", "labels": label(ADAPTER)},
    "spec": {
        "baseModel": WHOLE,
        "artifactURL": "huggingface://someone/some-lora",
        "podSelector": {"matchLabels": {"model.aibrix.ai/name": WHOLE}},
        "schedulerName": "least-adapters",
    },
    "status": {"instances": ["deepseek-1"]},
}

CLAIM = "modelclaim.aibrix.ai/"
ACTIVE, ASLEEP = "qwen3-0.6b", "qwen2.5-0.5b"
WARM = "warm-runtime-pool-0"


def claim(model: str, state: str, port: int = 0) -> str:
    return json.dumps({"model": model, "port": port, "state": state})


@dataclass(frozen=True, slots=True)
class Dropin:
    """The installation, with aibrix's pods behind it.

    Attributes:
        api: where its controllers write.
        woken: what the runtime of the warm pool was asked for.
        redis: what its metadata service writes users to; None where there is no such program.
    """

    stack: LocalStack
    client: httpx.AsyncClient
    api: FakeApiServer
    woken: list[Any]
    redis: RedisServer | None

    async def ask(self, model: str, words: int = 8, **headers: str) -> httpx.Response:
        content = "why is the sky blue " * (words // 4)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 2,
        }
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(CHAT, json=body, headers=sent)


TAKEN = ("PDROUTER_NAMESPACES", "PDROUTER_MODEL_CLAIMS")
"""Variables of the overlay that do not say where something is."""
MODELS = {SPLIT, FLEET, WHOLE, ADAPTER, ACTIVE, ASLEEP}


@asynccontextmanager
async def run_warm_pod(api: FakeApiServer, ip: str) -> AsyncIterator[list[Any]]:
    """Run a pod with an engine of one claim, the place for another's, and aibrix's runtime."""
    woken: list[Any] = []

    async def wake(request: web.Request) -> web.Response:
        woken.append(await request.json())
        return web.json_response({})

    runtime = web.Application()
    runtime.router.add_post("/v1/runtime/models/wake", wake)
    labels = {"pool.aibrix.ai/name": "pool-a", "pool.aibrix.ai/enabled": "true"}
    claims = {f"{CLAIM}a": claim(ACTIVE, "active", 8001), f"{CLAIM}b": claim(ASLEEP, "sleeping")}
    api.store.create(make_pod(WARM, labels=labels, annotations=claims, ip=ip))
    async with AsyncExitStack() as running:
        await running.enter_async_context(TestServer(runtime, host=ip, port=8080))
        for model, port in ((ACTIVE, 8001), (ASLEEP, 8002)):
            config = EngineConfig(host=ip, port=port, models=(model,), itl_ms=1)
            await running.enter_async_context(SimulatedEngine(config))
        yield woken


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dropin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dropin]:
    overlay = build(OVERLAYS[1])
    kubeconfig: Path = tmp_path_factory.mktemp("cluster") / "kubeconfig"
    async with AsyncExitStack() as running:
        api = await running.enter_async_context(FakeApiServer())
        for number, (name, labels, annotations) in enumerate(PODS, 1):
            ip = f"{NETWORK}.{number}"
            models = (str(labels["model.aibrix.ai/name"]), ADAPTER)
            role: Any = ROLES.get(name, "both")
            config = EngineConfig(role=role, host=ip, port=8000, models=models, itl_ms=1)
            await running.enter_async_context(SimulatedEngine(config))
            api.store.create(make_pod(name, labels=labels, annotations=annotations, ip=ip))
        woken = await running.enter_async_context(run_warm_pod(api, f"{NETWORK}.99"))
        api.store.create(LORA)
        api.store.create(FLEET_ROUTE)
        redis = running.enter_context(run_redis()) if PROGRAM else None
        stack = await running.enter_async_context(
            run_stack(
                StackOptions(
                    environment={
                        **AIBRIX_ENVIRONMENT,
                        "ROUTING_ALGORITHM": "",
                        "PDROUTER_ENDPOINTS": "",
                        "PDROUTER_KUBERNETES": "true",
                        **{
                            name: value
                            for name, value in environment(find(overlay, "Deployment")).items()
                            if name in TAKEN
                        },
                        "REDIS_HOST": "127.0.0.1",
                        "REDIS_PORT": str(redis.port if redis else 9),
                        # What a busy machine needs.
                        "PDROUTER_REDIS_TIMEOUT": "2",
                        "PDROUTER_HTTPROUTE_NAMESPACE": "aibrix-system",
                        "PDROUTER_POD_NETWORKS": f"{NETWORK}.0/24",
                        "KUBECONFIG": str(api.write_kubeconfig(kubeconfig)),
                    }
                )
            )
        )
        router = [f"127.0.0.1:{stack.router.server.port}"]
        endpoints = {
            "aibrix-gateway-plugins": router,
            FLEET: [f"{NETWORK}.6:8000"],
            "llama31-8b": [f"{NETWORK}.6:8000"],
        }
        bootstrap = translate([*overlay, FLEET_ROUTE], endpoints)
        envoy = await running.enter_async_context(EnvoyProcess.run(bootstrap))
        client = await running.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30)
        )

        async def expect_all() -> None:
            listed = (await client.get("/v1/models")).json()["data"]
            assert {model["id"] for model in listed} == MODELS

        await eventually(expect_all)
        yield Dropin(stack, client, api, woken, redis)


async def test_the_heads_of_a_storm_service_form_a_pair(dropin: Dropin) -> None:
    for _ in range(4):
        answer = await dropin.ask(SPLIT)
        assert answer.status_code == 200, answer.text
        assert answer.headers["routing-strategy"] == "pd"
        assert answer.headers["prefill-target-pod"] == "storm-prefill-0"
        assert answer.headers["target-pod"] == "storm-decode-0"
        assert answer.headers["target-pod-ip"] == f"{NETWORK}.3:8000"
        assert answer.headers["prefill-target-pod-ip"] == f"{NETWORK}.1"


async def test_a_prompt_beyond_the_buckets_goes_to_the_combined_pod(dropin: Dropin) -> None:
    answer = await dropin.ask(SPLIT, words=8000)
    assert answer.headers["x-pd-decision"] == "aggregated;reason=no-bucket"
    assert answer.headers["target-pod"] == "storm-all-0"


async def test_the_head_of_a_ray_cluster_gets_all_requests(dropin: Dropin) -> None:
    for _ in range(8):
        answer = await dropin.ask(FLEET, routing_strategy="random")
        assert (answer.status_code, answer.headers["target-pod"]) == (200, "fleet-head")


async def test_without_a_strategy_a_model_goes_by_its_own_route(dropin: Dropin) -> None:
    answer = await dropin.ask(FLEET)
    assert (answer.status_code, answer.json()["model"]) == (200, FLEET)
    assert "target-pod" not in answer.headers


ALGORITHMS = [name for row in read_rows()["algorithms"] for name in row.names]


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name in STRATEGY_NAMES])
async def test_every_strategy_may_be_asked_for(dropin: Dropin, name: str) -> None:
    answer = await dropin.ask(WHOLE, routing_strategy=name)
    assert answer.status_code == 200, answer.text
    assert answer.headers["routing-strategy"] == name
    assert answer.headers["target-pod"].startswith("deepseek-")


@pytest.mark.parametrize("name", ["least-request:2,prefix-cache", "least-request:0,random:1"])
async def test_lists_with_weights_may_be_asked_for(dropin: Dropin, name: str) -> None:
    answer = await dropin.ask(WHOLE, routing_strategy=name)
    assert answer.status_code == 200, answer.text
    assert answer.headers["routing-strategy"] == name


@pytest.mark.parametrize("name", ["least-requests", "pd:x", "a,,b"])
async def test_another_is_refused(dropin: Dropin, name: str) -> None:
    answer = await dropin.ask(WHOLE, routing_strategy=name)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_routing_strategy"


@pytest.mark.parametrize(
    ("selector", "pods"),
    [
        ("environment=production,tier=b", {"deepseek-1"}),
        ("environment in (staging, testing)", {"deepseek-2"}),
        ("environment!=staging", {"deepseek-0", "deepseek-1"}),
        ("environment=production,!absent", {"deepseek-0", "deepseek-1"}),
    ],
)
async def test_a_filter_of_labels_narrows_the_choice(
    dropin: Dropin, selector: str, pods: set[str]
) -> None:
    for _ in range(4):
        answer = await dropin.ask(WHOLE, routing_strategy="random", external_filter=selector)
        assert answer.status_code == 200, answer.text
        assert answer.headers["target-pod"] in pods


async def test_a_profile_of_the_model_counts(dropin: Dropin) -> None:
    plain = await dropin.ask(WHOLE)
    named = await dropin.ask(WHOLE, config_profile="long")
    auto = await dropin.ask(WHOLE, words=2000, config_profile="auto")

    assert plain.headers["routing-strategy"] == "least-request"
    assert named.headers["routing-strategy"] == "random"
    assert auto.headers["x-aibrix-config-profile"] == "long"


async def test_an_adapter_leads_to_the_pods_that_have_it(dropin: Dropin) -> None:
    answer = await dropin.ask(ADAPTER, routing_strategy="random")
    assert (answer.status_code, answer.headers["target-pod"]) == (200, "deepseek-1")
    assert answer.json()["model"] == ADAPTER


async def test_the_paths_of_every_kind_are_open(dropin: Dropin) -> None:
    """aibrix's own routes leave these out, unless a client says a strategy."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
        ("/v1/embeddings", {"input": "hi"}),
        ("/v1/images/generations", {"prompt": "a cat"}),
    ]
    for path, members in bodies:
        answer = await dropin.client.post(path, json={"model": WHOLE, **members})
        assert answer.status_code == 200, (path, answer.text)
    heard = await dropin.client.post(
        "/v1/audio/transcriptions", data={"model": WHOLE}, files={"file": ("x", b"y")}
    )
    assert heard.status_code == 200


async def test_a_claimed_model_is_served_at_its_own_port(dropin: Dropin) -> None:
    answer = await dropin.ask(ACTIVE, routing_strategy="least-request")
    assert answer.status_code == 200, answer.text
    assert answer.headers["target-pod-ip"] == f"{NETWORK}.99:8001"
    assert answer.json()["model"] == ACTIVE


async def test_a_model_that_sleeps_is_woken_once_and_served_then(dropin: Dropin) -> None:
    async def put(state: str, port: int = 0) -> None:
        annotations = {f"{CLAIM}b": claim(ASLEEP, state, port)}
        dropin.api.store.patch("pods", WARM, {"metadata": {"annotations": annotations}})

    async def expect(text: str, retry_after: str | None) -> None:
        answer = await dropin.ask(ASLEEP)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "model_inactive")
        assert text in error["message"]
        assert answer.headers.get("retry-after") == retry_after

    for _ in range(3):
        await expect("is sleeping; retry shortly", "10")

    async def expect_woken() -> None:
        (asked,) = dropin.woken
        assert asked["model_name"] == ASLEEP
        assert asked["operation_id"].startswith("gateway-wake/")
        assert asked["operation_id"].split("/")[2] == ASLEEP

    await eventually(expect_woken)
    await put("activating")
    await eventually(lambda: expect("is activating; retry shortly", "10"))
    await put("failed")
    await eventually(lambda: expect("has failed to start", None))
    await put("active", 8002)

    async def expect_served() -> None:
        answer = await dropin.ask(ASLEEP, routing_strategy="random")
        assert answer.status_code == 200
        assert answer.headers["target-pod-ip"] == f"{NETWORK}.99:8002"

    await eventually(expect_served)
    assert len(dropin.woken) == 1


@needs_redis
async def test_users_have_the_limits_that_the_metadata_service_has_written(dropin: Dropin) -> None:
    assert dropin.redis is not None
    dropin.redis.ask("set", "aibrix-users/ann", '{"name": "ann", "rpm": 2, "tpm": 1000}')
    asked = [await dropin.ask(WHOLE, user="ann") for _ in range(3)]
    assert [answer.status_code for answer in asked] == [200, 200, 429]
    assert asked[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(asked[2].headers["retry-after"]) > 0
    assert (await dropin.ask(WHOLE, user="nobody")).status_code == 401
    assert (await dropin.ask(WHOLE)).status_code == 200


@needs_redis
async def test_a_user_has_the_limits_that_aibrix_keeps(dropin: Dropin) -> None:
    """As its metadata service writes them. Other users, and who names none, have others."""
    assert dropin.redis is not None
    for name, requests in (("alice", 2), ("bob", 9)):
        user = {"name": name, "rpm": requests, "tpm": 100000}
        dropin.redis.ask("set", f"aibrix-users/{name}", json.dumps(user))
    answers = [await dropin.ask(WHOLE, user="alice") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await dropin.ask(WHOLE, user="bob")).status_code == 200
    assert (await dropin.ask(WHOLE)).status_code == 200
    unknown = await dropin.ask(WHOLE, user="mallory")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "unknown_user")
