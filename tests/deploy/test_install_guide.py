"""`docs/install.md` works as written.

All of its commands are run, in order and byte for byte, by bash: the real kubectl against the fake
API server, the real curl against the real Envoy, router and simulated engines. `guides.py` names
the programs that are replaced by stand-ins. What follows a command on the page is what it printed.
"""

import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from envoy_gateway import translate
from envoy_gateway_status import accept_all
from expectations import eventually
from fakekube import FakeApiServer
from guides import DOCS, KUBECTL_STAND_INS, STAND_INS, Shell, can_run_guides, read_steps
from loopback import claim_network
from manifests import Object, build, container, environment, find
from processes import RouterProcess
from validation import CRDS, find_problems

from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

PAGE = "install.md"
TEXT = (DOCS / PAGE).read_text()
STEPS = read_steps(PAGE)
MODELS = ("llama31-8b", "llama31-8b-sql")
# The guide's pods serve at port 8000: addresses of their own let two runs share a machine.
NETWORK = claim_network()
PREFIX = {"prefill": f"{NETWORK}.3", "decode": f"{NETWORK}.4"}
REPLICAS = {"prefill": 2, "decode": 4}
GATEWAY_PORT, ROUTER_PORT = 8888, 8080
POLICIES = ("envoyextensionpolicies", "clienttrafficpolicies", "backendtrafficpolicies")

pytestmark = pytest.mark.skipif(not can_run_guides(), reason="curl or a basic Unix tool is missing")


class Cluster:
    """A fake API server with what else is in a cluster: nodes, controllers, and what pods run."""

    def __init__(self, api: FakeApiServer, shell: Shell, stack: AsyncExitStack) -> None:
        self._api = api
        self._shell = shell
        self._stack = stack
        self.router: RouterProcess | None = None

    async def start(self) -> None:
        """Start what is there before the guide begins, and the engines."""
        numbers = {role: itertools.count(1) for role in PREFIX}
        others = itertools.count(1)

        def allocate(pod: Object) -> str:
            role = pod["metadata"]["labels"].get("role-name")
            if role is None:
                return f"10.0.0.{next(others)}"
            return f"{PREFIX[role]}.{next(numbers[role])}"

        for number in range(11, 17):
            self._api.store.create(make_node(f"ip-10-0-1-{number}.ec2.internal"))
        self._api.store.create(make("Namespace", "envoy-gateway-system"))
        self._api.store.create(make_envoy_gateway())
        self._api.run_deployments(allocate)
        for role, replicas in REPLICAS.items():
            for number in range(1, replicas + 1):
                config = EngineConfig(
                    role="prefill" if role == "prefill" else "decode",
                    models=MODELS,
                    host=f"{PREFIX[role]}.{number}",
                    port=8000,
                    itl_ms=1,
                )
                await self._stack.enter_async_context(SimulatedEngine(config))

    async def follow(self) -> None:
        """Do what controllers and kubelets do after something was applied."""
        store = self._api.store
        for gateway in store.objects("gateways"):
            if "status" not in gateway:
                self._make_service(gateway)
        accept_all(self._api)
        if self.router is None and store.objects("deployments", selector="app=pdrouter"):
            await self._start_router()
        if self.router is not None:
            await eventually(self._expect_known)
            await eventually(self._write_log)

    def _make_service(self, gateway: Object) -> None:
        labels = {"gateway.envoyproxy.io/owning-gateway-name": gateway["metadata"]["name"]}
        service = make("Service", "envoy-default-pdrouter-1", "envoy-gateway-system", labels)
        self._api.store.create(service)

    async def _start_router(self) -> None:
        """Run the router as its Deployment says, and an Envoy as Envoy Gateway makes it."""
        store = self._api.store
        deployment = store.get("deployments", "pdrouter")
        assert container(deployment)["args"] == ["serve", "--kubernetes"]
        variables = environment(deployment)
        for name, value in variables.items():
            if value == "$metadata.namespace":
                variables[name] = deployment["metadata"]["namespace"]
        kubeconfig = self._api.write_kubeconfig(self._shell.directory / "kubeconfig")
        variables |= {
            "PDROUTER_KUBERNETES": "true",
            "PDROUTER_POD_NETWORKS": "127.0.0.0/8",
            "KUBECONFIG": str(kubeconfig),
        }
        self.router = await self._stack.enter_async_context(RouterProcess.serving(variables))
        objects = [
            one
            for plural in ("gateways", "httproutes", "envoyproxies", *POLICIES)
            for one in store.objects(plural)
        ]
        decode = [f"{PREFIX['decode']}.{number}:8000" for number in range(1, 5)]
        endpoints = {"pdrouter": [str(self.router.grpc_address)], "pdrouter-decode": decode}
        bootstrap = translate(objects, endpoints)
        envoy = await self._stack.enter_async_context(EnvoyProcess.run(bootstrap))
        self._shell.redirect(
            {
                GATEWAY_PORT: envoy.listener,
                ROUTER_PORT: self.router.admin_url.removeprefix("http://"),
            }
        )

    async def _expect_known(self) -> None:
        """The router knows all pods and adapters."""
        assert self.router is not None
        store = self._api.store
        pods = {pod["metadata"]["name"] for pod in store.objects("pods", selector="role-name")}
        state = (await self.router.get("/debug/state")).json()
        assert {pod["name"] for pod in state["pods"] if pod["ready"]} == pods
        served = {one["id"] for one in (await self.router.get("/v1/models")).json()["data"]}
        adapters = {
            one["metadata"]["name"]
            for one in store.objects("modeladapters")
            if pods.intersection(one.get("status", {}).get("instances", ()))
        }
        assert adapters <= served

    async def _write_log(self) -> None:
        """The router has ended, and logged, all requests."""
        assert self.router is not None
        assert not (await self.router.get("/debug/state")).json()["requests"]
        ended = (await self.router.read_metrics()).total("pdrouter_requests_total")
        assert len(self.router.events("request")) == ended
        lines = [msgspec.json.encode(line) + b"\n" for line in self.router.lines]
        self._shell.router_log.write_bytes(b"".join(lines))


def make(
    kind: str, name: str, namespace: str | None = None, labels: dict[str, str] | None = None
) -> Object:
    metadata: dict[str, Any] = {"name": name, "labels": labels or {}}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def make_node(name: str) -> Object:
    allocatable = {"vpc.amazonaws.com/efa": "1", "aws.amazon.com/neuron": "16"}
    node = make("Node", name, labels={"eks.amazonaws.com/nodegroup": "trainium2"})
    return {**node, "status": {"allocatable": allocatable}}


def make_envoy_gateway() -> Object:
    labels = {"control-plane": "envoy-gateway"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "envoy-gateway"}]}}
    return {
        **make("Deployment", "envoy-gateway", "envoy-gateway-system"),
        "apiVersion": "apps/v1",
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


@asynccontextmanager
async def run_cluster(directory: Path) -> AsyncIterator[tuple[Cluster, Shell]]:
    async with FakeApiServer(termination_delay=0.02) as api, AsyncExitStack() as stack:
        kubeconfig = api.write_kubeconfig(directory / "kubeconfig")
        shell = Shell(directory, KUBECONFIG=str(kubeconfig), HF_TOKEN="hf_x")
        cluster = Cluster(api, shell, stack)
        await cluster.start()
        yield cluster, shell


async def test_its_commands_print_what_it_says(tmp_path: Path) -> None:
    async with run_cluster(tmp_path) as (cluster, shell):
        for step in STEPS:
            await shell.check(step)
            await cluster.follow()
        assert cluster.router is not None
        cluster.router.expect_no_accident()


def test_it_says_which_commands_are_not_carried_out() -> None:
    _, _, section = TEXT.partition("## What of this page is tested")
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {command for cell in cells for command in re.findall(r"`(.*?)`", cell)}

    assert named == {*STAND_INS, *KUBECTL_STAND_INS}


def test_every_output_on_the_page_is_compared() -> None:
    outputs = re.findall(r"^```(?!bash)\w+$", TEXT, re.MULTILINE)

    assert len(outputs) == sum(step.expected is not None for step in STEPS)


async def write_files(shell: Shell, example: str) -> None:
    """Run what writes the user's own kustomizations, for one of the examples."""
    for step in STEPS:
        if step.script.startswith("export") or "<<" in step.script:
            script = re.sub("^kubectl .*\n", "", step.script, flags=re.MULTILINE)
            script = script.replace("EXAMPLE=simulated", f"EXAMPLE={example}")
            await shell.run(replace(step, script=script))


@pytest.mark.parametrize(
    ("example", "image"),
    [
        ("simulated", "registry.example.com/pdrouter:0.1.0"),
        ("gpu", "vllm/vllm-openai:v0.33.0"),
        ("trainium2", "registry.example.com/vllm-neuron:1"),
    ],
)
async def test_the_engines_of_each_example_have_an_image(
    tmp_path: Path, example: str, image: str
) -> None:
    shell = Shell(tmp_path)
    await write_files(shell, example)

    engines = build(shell.directory / "my" / "engines")
    assert [container(one)["image"] for one in engines if one["kind"] == "Deployment"] == [
        image,
        image,
    ]


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no CRDs at {CRDS}")
async def test_the_users_own_kustomization_is_valid(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    await write_files(shell, "simulated")

    router = build(shell.directory / "my" / "router")
    assert {one["kind"]: found for one in router if (found := find_problems(one))} == {}
    assert "AIBRIX_AUTH_BEARER_TOKEN" in str(find(router, "Deployment"))
    assert find(router, "NetworkPolicy")["metadata"]["namespace"] == "default"
