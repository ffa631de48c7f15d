"""Pods from Kubernetes, through the real Envoy: from a guide's manifests to engines."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from expectations import UNTIL_SETTLED_S, connect, eventually, expect_settled
from fakekube import FakeApiServer, make_pod
from informers import wait_for
from loopback import claim_network

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

GUIDE = Path(__file__).parents[1] / "data" / "setup-guide.md"
MODEL = "llama31-8b"
# The guide's pods serve at port 8000: addresses of their own let two runs share a machine.
NETWORK = claim_network()
PREFILL, DECODE = f"{NETWORK}.1", f"{NETWORK}.2"
PROMPT = "Hello, how are you today? " * 10


def read_guide() -> list[dict[str, Any]]:
    """Return the objects of the setup guide: its YAML blocks and what it pipes to kubectl."""
    text = GUIDE.read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"kubectl apply -f - <<EOF\n(.*?)^EOF", text, re.MULTILINE | re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def address_pods(prefix: Mapping[str, str]) -> Callable[[dict[str, Any]], str]:
    """Return what gives pods of a role the addresses below a prefix, one after the other."""
    numbers = {role: count(1) for role in prefix}

    def allocate(pod: dict[str, Any]) -> str:
        role = pod["metadata"]["labels"]["role-name"]
        return f"{prefix[role]}.{next(numbers[role])}"

    return allocate


@dataclass
class Cluster:
    """An API server, engines, and the installation that serves them."""

    api: FakeApiServer
    stack: LocalStack
    client: httpx.AsyncClient

    async def wait_for_pods(self, ready: int) -> None:
        """Wait until the router knows so many ready pods."""
        await wait_for(lambda: sum(pod.ready for pod in self.stack.router.cache.view.pods) == ready)

    async def chat(
        self, model: str = MODEL, prompt: str = PROMPT, **headers: str
    ) -> httpx.Response:
        """Send a chat request."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 4,
        }
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)


@asynccontextmanager
async def run_cluster(
    kubeconfig: Path,
    *,
    prefill: tuple[EngineConfig, ...],
    decode: tuple[EngineConfig, ...],
    routing: Routing = Routing.ORIGINAL_DST,
    **environment: str,
) -> AsyncIterator[Cluster]:
    async with FakeApiServer() as api:
        options = StackOptions(
            model=MODEL,
            prefill=prefill,
            decode=decode,
            routing=routing,
            environment={
                "PDROUTER_ENDPOINTS": "",
                "PDROUTER_KUBERNETES": "true",
                "PDROUTER_POD_NETWORKS": f"{NETWORK}.0.0/16",
                "KUBECONFIG": str(api.write_kubeconfig(kubeconfig)),
                **environment,
            },
        )
        async with run_stack(options) as stack, connect(stack) as client:
            yield Cluster(api, stack, client)
            await expect_settled(stack)


def engines(
    role: Any, prefix: str, number: int, *, kv_lease_s: float = 30.0
) -> tuple[EngineConfig, ...]:
    return tuple(
        EngineConfig(
            role=role, host=f"{prefix}.{index}", port=8000, itl_ms=1, kv_lease_s=kv_lease_s
        )
        for index in range(1, number + 1)
    )


async def test_the_manifests_of_the_setup_guide_lead_to_routed_pods(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 2),
        decode=engines("decode", DECODE, 4),
    ) as cluster:
        objects = read_guide()
        assert [thing["kind"] for thing in objects] == [
            "Deployment",
            "Deployment",
            "BackendTrafficPolicy",
            "ModelAdapter",
        ]
        for thing in objects:
            if thing["kind"] != "BackendTrafficPolicy":
                cluster.api.store.create(thing)
        cluster.api.run_deployments(address_pods({"prefill": PREFILL, "decode": DECODE}))
        await cluster.wait_for_pods(6)
        pods = cluster.api.store.objects("pods")
        names = {
            role: {
                pod["metadata"]["name"]
                for pod in pods
                if pod["metadata"]["labels"]["role-name"] == role
            }
            for role in ("prefill", "decode")
        }
        # aibrix's controller says which pods have loaded an adapter: here, those of its selector.
        cluster.api.store.patch(
            "modeladapters",
            MODEL,
            {"status": {"instances": sorted(names["prefill"])}},
            namespace="default",
        )
        seen: set[str] = set()
        for _ in range(12):
            response = await cluster.chat()
            assert response.status_code == 200
            assert response.headers["x-pd-decision"] == "disaggregated"
            assert response.headers["prefill-target-pod"] in names["prefill"]
            assert response.headers["target-pod"] in names["decode"]
            assert response.headers["target-pod-ip"].startswith(f"{DECODE}.")
            assert response.headers["prefill-target-pod-ip"].startswith(f"{PREFILL}.")
            usage = response.json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
            seen.add(response.headers["target-pod"])
        assert len(seen) > 1


async def test_an_adapter_on_prefill_pods_is_decoded_by_the_base_models_pods(
    tmp_path: Path,
) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=(
            EngineConfig(role="prefill", host=f"{PREFILL}.1", port=8000),
            EngineConfig(role="prefill", host=f"{PREFILL}.2", port=8000),
        ),
        decode=engines("decode", DECODE, 1),
    ) as cluster:
        add_pods(cluster.api, "prefill", PREFILL, 2)
        add_pods(cluster.api, "decode", DECODE, 1)
        cluster.api.store.create(
            {
                "apiVersion": "model.aibrix.ai/v1alpha1",
                "kind": "ModelAdapter",
                "metadata": {"name": "my-lora", "namespace": "default"},
                "spec": {"baseModel": MODEL, "artifactURL": "x", "podSelector": {}},
                "status": {"instances": ["prefill-2"]},
            }
        )
        await wait_for(lambda: "my-lora" in cluster.stack.router.cache.view.models)
        response = await cluster.chat("my-lora")
        # The simulated engines know no adapters; what counts is whom the router has asked.
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "NotFoundError"
        assert response.headers["prefill-target-pod"] == "prefill-2"
        (decision,) = cluster.stack.router.telemetry.decisions.describe()
        assert decision["decode"]["pod"] == "decode-1"
        listed = (await cluster.client.get("/v1/models")).json()["data"]
        assert {model["id"] for model in listed} == {MODEL, "my-lora"}


def add_pods(api: FakeApiServer, role: str, prefix: str, number: int) -> None:
    for index in range(1, number + 1):
        add_pod(api, role, f"{prefix}.{index}", f"{role}-{index}")


def add_pod(
    api: FakeApiServer, role: str, ip: str, name: str, labels: Mapping[str, str] | None = None
) -> None:
    said = {"role-name": role, "model.aibrix.ai/name": MODEL, **(labels or {})}
    api.store.create(make_pod(name, labels=said, ip=ip, node=f"node-of-{name}"))


async def test_pairs_in_one_zone_are_preferred_and_those_of_two_versions_refused(
    tmp_path: Path,
) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 2),
        decode=engines("decode", DECODE, 2),
        PDROUTER_AGGREGATE="never",
    ) as cluster:
        for role, prefix in (("prefill", PREFILL), ("decode", DECODE)):
            for number in (1, 2):
                zone = {"topology.kubernetes.io/zone": f"zone-{number}"}
                add_pod(cluster.api, role, f"{prefix}.{number}", f"{role}-{number}", zone)
        await cluster.wait_for_pods(4)
        pairs = set()
        for number in range(20):
            # Each a prompt of its own: one that is known goes where it is cached.
            headers = (await cluster.chat(prompt=f"{number} {PROMPT}")).headers
            pairs.add((headers["prefill-target-pod"], headers["target-pod"]))
        # A prefill pod that was measured to be faster may get all of them.
        assert pairs <= {("prefill-1", "decode-1"), ("prefill-2", "decode-2")}
        for role, revision in (("prefill", "two"), ("decode", "one")):
            for number in (1, 2):
                labels = {"metadata": {"labels": {"pdrouter/revision": revision}}}
                cluster.api.store.patch("pods", f"{role}-{number}", labels)
        await wait_for(lambda: len(cluster.stack.router.cache.view.unmatched) == 4)
        response = await cluster.chat()
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "no_ready_pod"
        assert "no ready prefill pod with a ready decode pod of its version" in error["message"]


async def test_until_the_pods_are_known_requests_are_told_to_come_back(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 1),
        decode=engines("decode", DECODE, 1),
        PDROUTER_NAMESPACES="elsewhere",
    ) as cluster:
        await wait_for(lambda: cluster.stack.router.cache.synced)
        cluster.stack.router.cache.synced = False
        ready = await cluster.client.get(f"{cluster.stack.admin_url}/readyz")
        assert ready.status_code == 503
        response = await cluster.chat()
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "no_ready_pod"
        assert "retry-after" in response.headers


class Load:
    """Clients that send requests until they are stopped.

    Every answer must be a good one, except where the prefill pod is one that is killed: the blocks
    that its decode pod has not fetched yet die with it.
    """

    def __init__(self, cluster: Cluster, clients: int, *, killed: str = "") -> None:
        self.sent = 0
        self._begun = 0
        self._killed = killed
        self._cluster = cluster
        self._clients = clients
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._clients):
                tasks.create_task(self._send())
            try:
                yield
            finally:
                self._stopping = True

    async def _send(self) -> None:
        while not self._stopping:
            # Each a prompt of its own: one that is known goes where it is cached.
            self._begun += 1
            response = await self._cluster.chat(prompt=f"{self._begun} {PROMPT}")
            assert response.headers["x-pd-decision"] == "disaggregated"
            if response.headers["prefill-target-pod"] != self._killed:
                assert response.status_code == 200, response.text
            self.sent += 1

    async def pass_requests(self, number: int = 30) -> None:
        """Wait until so many more requests have been answered."""
        target = self.sent + number
        await wait_for(lambda: self.sent >= target)


def count_received(engine: SimulatedEngine) -> int:
    """Return how many requests an engine has got so far."""
    return engine.requests[-1].number if engine.requests else 0


async def expect_left_alone(cluster: Cluster, engine: SimulatedEngine, load: Load) -> None:
    """Check that an engine gets nothing any more, once the router has seen its pod's event."""
    gone = engine.address
    router = cluster.stack.router
    await wait_for(
        lambda: all(pod.address != gone or not pod.ready for pod in router.cache.view.pods)
    )
    open_before = set(router.telemetry.open)
    await wait_for(lambda: not open_before & set(router.telemetry.open))
    received = count_received(engine)
    await load.pass_requests()
    assert count_received(engine) == received


async def expect_used(engine: SimulatedEngine) -> None:
    """Wait until an engine gets another request."""
    before = count_received(engine)
    await wait_for(lambda: count_received(engine) > before)


async def test_pods_come_and_go_under_load(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 2),
        decode=engines("decode", DECODE, 2),
    ) as cluster:
        add_pods(cluster.api, "prefill", PREFILL, 2)
        add_pods(cluster.api, "decode", DECODE, 2)
        await cluster.wait_for_pods(4)
        load = Load(cluster, 8)
        store = cluster.api.store
        async with load.running():
            await load.pass_requests()
            for role, prefix, both in (
                ("prefill", PREFILL, cluster.stack.prefill),
                ("decode", DECODE, cluster.stack.decode),
            ):
                name, ip, engine = f"{role}-1", f"{prefix}.1", both[0]
                unready = {"conditions": [{"type": "Ready", "status": "False"}]}
                store.patch("pods", name, {"status": unready}, namespace="default")
                await expect_left_alone(cluster, engine, load)
                ready = {"conditions": [{"type": "Ready", "status": "True"}]}
                store.patch("pods", name, {"status": ready}, namespace="default")
                await cluster.wait_for_pods(4)
                # Terminating pods are out before they are gone.
                store.delete("pods", name, namespace="default", grace=3600)
                await expect_left_alone(cluster, engine, load)
                store.finish_deletion("pods", name, namespace="default")
                await wait_for(lambda: len(cluster.stack.router.cache.view.pods) == 3)
                # The same name and address, and yet another pod.
                add_pod(cluster.api, role, ip, name)
                await cluster.wait_for_pods(4)
                await expect_used(engine)
        assert load.sent > 100


async def test_a_killed_prefill_engine_costs_no_request(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 2, kv_lease_s=UNTIL_SETTLED_S),
        decode=engines("decode", DECODE, 1),
    ) as cluster:
        add_pods(cluster.api, "prefill", PREFILL, 2)
        add_pods(cluster.api, "decode", DECODE, 1)
        await cluster.wait_for_pods(3)
        load = Load(cluster, 4, killed="prefill-1")
        async with load.running():
            await load.pass_requests()
            await cluster.stack.prefill[0].stop()
            await load.pass_requests()
            cluster.api.store.delete("pods", "prefill-1", namespace="default", grace=0)
            await cluster.wait_for_pods(2)
            await load.pass_requests()


@pytest.fixture
async def routed_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster whose requests go by their model's HTTPRoute, which is remembered for a while."""
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 1),
        decode=engines("decode", DECODE, 1),
        routing=Routing.OVERRIDE_HOST,
        ROUTING_ALGORITHM="",
        AIBRIX_HTTPROUTE_CACHE_TTL=getattr(request, "param", "200ms"),
    ) as cluster:
        add_pods(cluster.api, "prefill", PREFILL, 1)
        add_pods(cluster.api, "decode", DECODE, 1)
        await cluster.wait_for_pods(2)
        yield cluster


def make_route(accepted: str = "Accepted", resolved: str = "ResolvedRefs") -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": f"{MODEL}-router", "namespace": "aibrix-system"},
        "spec": {},
        "status": {
            "parents": [
                {
                    "conditions": [
                        {"type": "Accepted", "reason": accepted, "status": "True"},
                        {"type": "ResolvedRefs", "reason": resolved, "status": "True"},
                    ]
                }
            ]
        },
    }


async def test_without_a_strategy_a_request_goes_by_its_models_route(
    routed_cluster: Cluster,
) -> None:
    cluster = routed_cluster
    response = await cluster.chat()
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "route_unavailable"
    assert f"aibrix-system/{MODEL}-router" in error["message"]
    cluster.api.store.create(make_route(resolved="BackendNotFound"))
    await wait_until_answered(cluster, 503, "BackendNotFound")
    cluster.api.store.patch(
        "httproutes",
        f"{MODEL}-router",
        {"status": make_route()["status"]},
        namespace="aibrix-system",
    )
    await wait_until_answered(cluster, 200, "")
    (engine,) = cluster.stack.decode
    headers = engine.requests[-1].headers
    assert headers["model"] == MODEL
    assert not {"target-pod", "x-gateway-destination-endpoint", "routing-strategy"} & set(headers)


async def wait_until_answered(cluster: Cluster, status: int, text: str) -> None:
    """Repeat a request until it is answered so; what was found before is remembered a while."""

    async def check() -> None:
        response = await cluster.chat()
        assert response.status_code == status, response.text
        assert text in response.text

    await eventually(check)


@pytest.mark.parametrize("routed_cluster", ["60s"], indirect=True)
async def test_the_route_is_looked_at_once_for_many_requests(routed_cluster: Cluster) -> None:
    cluster = routed_cluster
    cluster.api.store.create(make_route())
    cluster.api.faults.delay(0.1, resource="httproutes", times=None)
    responses = await asyncio.gather(*(cluster.chat() for _ in range(10)))
    assert {response.status_code for response in responses} == {200}
    assert cluster.api.count("get", "httproutes") == 1


async def test_a_strategy_needs_no_route(routed_cluster: Cluster) -> None:
    response = await routed_cluster.chat(**{"routing-strategy": "pd"})
    assert response.status_code == 200
    assert response.headers["x-pd-decision"] == "disaggregated"
    assert routed_cluster.api.count("get", "httproutes") == 0


async def test_a_name_in_two_namespaces_is_asked_for_by_namespace(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 2),
        decode=engines("decode", DECODE, 2),
        PDROUTER_NAMESPACES="*",
    ) as cluster:
        for index, namespace in ((1, "one"), (2, "two")):
            for role, prefix in (("prefill", PREFILL), ("decode", DECODE)):
                labels = {"role-name": role, "model.aibrix.ai/name": MODEL}
                cluster.api.store.create(
                    make_pod(
                        f"{role}-{namespace}",
                        namespace=namespace,
                        labels=labels,
                        ip=f"{prefix}.{index}",
                    )
                )
        await cluster.wait_for_pods(4)
        response = await cluster.chat()
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("model_ambiguous", "model")
        assert f"one/{MODEL}" in error["message"]
        for namespace in ("one", "two"):
            response = await cluster.chat(f"{namespace}/{MODEL}")
            # The engines know the model by its own name.
            assert response.status_code == 200
            assert response.headers["prefill-target-pod"] == f"prefill-{namespace}"
            assert response.headers["target-pod"] == f"decode-{namespace}"
            assert response.json()["model"] == MODEL


async def test_a_tenant_cannot_take_part_in_anothers_model(tmp_path: Path) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 1),
        decode=engines("decode", DECODE, 1),
        PDROUTER_NAMESPACES="*",
        PDROUTER_MODEL_NAMESPACES="reserved=prod",
    ) as cluster:
        add_tenants(cluster.api)
        await cluster.wait_for_pods(3)
        for name in (f"prod/{MODEL}", MODEL):
            # Both of the engines are prod's; whoever else took part would get every second one.
            for _ in range(4):
                response = await cluster.chat(name)
                assert response.status_code == 200, response.text
                assert response.headers["target-pod"] == "decode"
                assert response.headers["prefill-target-pod"] == "prefill"
        # Not even while prod has nothing that is ready.
        unready = {"conditions": [{"type": "Ready", "status": "False"}]}
        cluster.api.store.patch("pods", "decode", {"status": unready}, namespace="prod")
        await cluster.wait_for_pods(2)
        for name in (f"prod/{MODEL}", MODEL):
            response = await cluster.chat(name)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "no_ready_pod"
        assert (await cluster.chat("reserved")).status_code == 404
        await expect_refusals_said(cluster)


def add_tenants(api: FakeApiServer) -> None:
    """A namespace that serves the model, and one that tries to get at its requests."""
    prefill, decode = {"role-name": "prefill"}, {"role-name": "decode"}
    serving, name = {"model.aibrix.ai/name": MODEL}, "model.aibrix.ai/name"
    for role, labels, ip in (("prefill", prefill, PREFILL), ("decode", decode, DECODE)):
        pod = make_pod(role, namespace="prod", labels=labels | serving, ip=f"{ip}.1")
        api.store.create(pod)
    for pod in (
        make_pod("taker", labels=decode, annotations={name: f"prod/{MODEL}"}, ip=f"{DECODE}.9"),
        make_pod("never", labels=decode | serving, ip=f"{DECODE}.9", ready=False),
        make_pod("reserved", labels=decode | {name: "reserved"}, ip=f"{DECODE}.9"),
        make_pod("metadata", labels=decode | serving, ip="169.254.169.254"),
        make_pod("router", labels=decode | serving, ip="127.0.0.1"),
    ):
        pod["metadata"]["namespace"] = "evil"
        api.store.create(pod)


async def expect_refusals_said(cluster: Cluster) -> None:
    state = (await cluster.client.get(f"{cluster.stack.admin_url}/debug/state")).json()
    assert {pod["name"]: pod["obstacle"] for pod in state["pods"] if pod["obstacle"]} == {
        "never": "not ready",
        "decode": "not ready",
        "reserved": "namespace evil may not serve model 'reserved'",
        "metadata": "address 169.254.169.254 is a link-local address",
        "router": "address 127.0.0.1 is a loopback address",
    }
    metrics = (await cluster.client.get(f"{cluster.stack.admin_url}/metrics")).text
    label = 'role="decode",state="refused"'
    assert f'pdrouter_pods{{model="{MODEL}",{label}}} 2.0' in metrics
    assert f'pdrouter_pods{{model="reserved",{label}}} 1.0' in metrics


async def test_an_engine_that_has_started_again_is_not_held_to_what_its_container_did_before(
    tmp_path: Path,
) -> None:
    async with run_cluster(
        tmp_path / "kubeconfig",
        prefill=engines("prefill", PREFILL, 1, kv_lease_s=UNTIL_SETTLED_S),
        decode=engines("decode", DECODE, 2),
    ) as cluster:
        for role, address in (("prefill", PREFILL), ("decode", DECODE)):
            for number in range(1, 3 if role == "decode" else 2):
                labels = {"role-name": role, "model.aibrix.ai/name": MODEL}
                ip = f"{address}.{number}"
                cluster.api.store.create(make_pod(f"{role}-{number}", labels=labels, ip=ip))
        await cluster.wait_for_pods(3)
        broken, failures = cluster.stack.decode[0], cluster.stack.router.failures
        broken.faults.set(Fault(status=500))
        while not failures.list_ejected():
            await cluster.chat()
        broken.faults.clear()
        assert {(await cluster.chat()).status_code for _ in range(10)} == {200}
        received = len(broken.requests)
        restart_engine(cluster.api, "decode-1")
        await wait_for(lambda: failures.calm)
        while len(broken.requests) == received:
            assert (await cluster.chat()).status_code == 200


def restart_engine(api: FakeApiServer, name: str) -> None:
    """Do what the kubelet reports when a container has died and was started again."""
    status = api.store.get("pods", name)["status"]["containerStatuses"][0]
    again = {**status, "restartCount": 1, "containerID": f"containerd://{'e' * 64}"}
    api.store.patch("pods", name, {"status": {"containerStatuses": [again]}})


async def test_ranks_with_ports_of_their_own_are_told_by_an_annotation_or_as_in_aibrix(
    tmp_path: Path,
) -> None:
    decode = tuple(
        EngineConfig(role="decode", host=f"{DECODE}.1", port=port, itl_ms=1)
        for port in (8000, 8001)
    )
    prefill = tuple(
        EngineConfig(role="prefill", host=f"{PREFILL}.1", port=port, itl_ms=1)
        for port in (8000, 9000)
    )
    async with run_cluster(tmp_path / "kubeconfig", prefill=prefill, decode=decode) as cluster:
        labels = {"model.aibrix.ai/name": MODEL}
        ports = {"pdrouter/data-parallel-ports": "8000,9000"}
        cluster.api.store.create(
            make_pod(
                "p",
                labels={**labels, "role-name": "prefill"},
                annotations=ports,
                ip=f"{PREFILL}.1",
            )
        )
        pod = make_pod("d", labels={**labels, "role-name": "decode"}, ip=f"{DECODE}.1")
        pod["spec"]["containers"][0]["env"] = [{"name": "data-parallel-size", "value": "2"}]
        cluster.api.store.create(pod)
        await cluster.wait_for_pods(4)
        served = (*cluster.stack.prefill, *cluster.stack.decode)

        async def reach_all() -> None:
            responses = await asyncio.gather(*(cluster.chat() for _ in range(20)))
            assert {response.status_code for response in responses} == {200}
            assert {response.headers["target-pod"] for response in responses} == {"d#0", "d#1"}
            assert all(engine.requests for engine in served)

        await eventually(reach_all)
        cluster.api.store.delete("pods", "d")
        await cluster.wait_for_pods(2)
