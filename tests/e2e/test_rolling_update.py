"""The setup guide's Deployments are updated under load, through the real Envoy."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fakekube.pods import pod_status
from informers import wait_for
from test_kubernetes import DECODE, PREFILL, PROMPT, Cluster, read_guide, run_cluster

from pdrouter.tools.simulation.config import EngineConfig, EngineRole
from pdrouter.tools.simulation.engine import SimulatedEngine

Json = dict[str, Any]

PREFIXES: Mapping[EngineRole, str] = {"prefill": PREFILL, "decode": DECODE}
REPLICAS: Mapping[EngineRole, int] = {"prefill": 2, "decode": 4}
# Where the engines of an image are, above this number.
IMAGES = {"your-vllm-neuron-image": 0, "your-vllm-neuron-image:2": 100}
OLD, NEW = IMAGES


def make_engines(role: EngineRole) -> tuple[EngineConfig, ...]:
    """Engines for the pods of both images; blocks do not go from one to the other."""
    return tuple(
        EngineConfig(
            role=role,
            host=f"{PREFIXES[role]}.{base + number}",
            port=8000,
            itl_ms=1,
            revision=image,
        )
        for image, base in IMAGES.items()
        for number in range(1, REPLICAS[role] + 1)
    )


class Served(NamedTuple):
    """How a request was served: by the engines of which images."""

    prefill: str
    decode: str


class Rollout:
    """Deployments, clients that send requests all the time, and the kubelet."""

    def __init__(self, cluster: Cluster) -> None:
        self.served: list[Served] = []
        self.lost: list[str] = []
        self._cluster = cluster
        self._store = cluster.api.store
        both = (*cluster.stack.prefill, *cluster.stack.decode)
        self._engines = {engine.host: engine for engine in both}
        self._stopped: set[str] = set()
        self._stopping = False

    @asynccontextmanager
    async def load(self, clients: int) -> AsyncIterator[None]:
        """Let clients send requests, each the next as soon as it has an answer."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._send(number))
            try:
                yield
            finally:
                self._stopping = True

    async def _send(self, client: int) -> None:
        count = 0
        while not self._stopping:
            count += 1
            response = await self._cluster.chat(prompt=f"{client} {count} {PROMPT}")
            if response.status_code != 200:
                self.lost.append(response.text)
            self.served.append(
                Served(
                    self._find_image(response.headers.get("prefill-target-pod-ip", "")),
                    self._find_image(response.headers.get("target-pod-ip", "")),
                )
            )

    def _find_image(self, address: str) -> str:
        return self._engines[address.partition(":")[0]].config.revision if address else ""

    async def pass_requests(self, number: int) -> list[Served]:
        """Wait until so many more requests have been answered, and return how."""
        before = len(self.served)
        await wait_for(lambda: len(self.served) >= before + number)
        return self.served[before:]

    def allocate(self, pod: Json) -> str:
        """Return the first free address of the pod's image."""
        role = pod["metadata"]["labels"]["role-name"]
        base = IMAGES[pod["spec"]["containers"][0]["image"]]
        taken = {other["status"]["podIP"] for other in self._store.objects("pods")}
        numbers = range(1, REPLICAS[role] + 1)
        return next(
            address
            for number in numbers
            if (address := f"{PREFIXES[role]}.{base + number}") not in taken
        )

    def set_image(self, role: EngineRole, image: str) -> None:
        """Do what `kubectl set image` does."""
        spec = self._store.get("deployments", role)["spec"]
        spec["template"]["spec"]["containers"][0]["image"] = image
        self._store.patch("deployments", role, {"spec": spec})

    def _is_over(self, role: EngineRole, image: str) -> bool:
        """Return whether all pods of a role are ready, and of this image."""
        pods = self._list_pods(role)
        return len(pods) == REPLICAS[role] and all(
            _is_ready(pod) and pod["spec"]["containers"][0]["image"] == image for pod in pods
        )

    async def finish(self, image: str, *roles: EngineRole) -> None:
        """Let pods come and go until all of these roles are of this image."""
        for _ in range(50):
            if all(self._is_over(role, image) for role in roles):
                return
            for role in roles:
                await self._advance(role)
        pytest.fail(f"the rollout of {image} does not end")

    async def _advance(self, role: EngineRole) -> None:
        """Let the next pod of a role start and become ready, and those that terminate end."""
        for pod in self._list_pods(role):
            if "deletionTimestamp" in pod["metadata"]:
                await self._end(pod)
        # The controller looks at what has changed.
        await asyncio.sleep(0.01)
        waiting = [pod for pod in self._list_pods(role) if not _is_ready(pod)]
        if not waiting:
            return
        pod = waiting[0]
        engine = self._engines[pod["status"]["podIP"]]
        if engine.host in self._stopped:
            self._stopped.remove(engine.host)
            await engine.start()
        for ready in (False, True):
            containers, ip = pod["spec"]["containers"], pod["status"]["podIP"]
            status = pod_status(containers, ip, ready=ready)
            self._store.patch("pods", pod["metadata"]["name"], {"status": status})
            if self.served:
                await self.pass_requests(8)

    async def _end(self, pod: Json) -> None:
        """End a pod as its `preStop` hook does: when it has served what was sent there."""
        router, name = self._cluster.stack.router, pod["metadata"]["name"]
        await wait_for(
            lambda: all(not each.ready for each in router.cache.view.pods if each.name == name)
        )
        open_before = set(router.telemetry.open)
        await wait_for(lambda: not open_before & set(router.telemetry.open))
        engine = self._engines[pod["status"]["podIP"]]
        await wait_for(lambda: _is_idle(engine))
        await self.stop(engine)
        self._store.finish_deletion("pods", name)

    async def stop(self, engine: SimulatedEngine) -> None:
        """End an engine."""
        self._stopped.add(engine.host)
        await engine.stop()

    def _list_pods(self, role: EngineRole) -> list[Json]:
        return self._store.objects("pods", selector=f"role-name={role}")


def _is_ready(pod: Json) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"]["conditions"]
    )


def _is_idle(engine: SimulatedEngine) -> bool:
    names = ("vllm:num_requests_running", "simulation:kv_handles_outstanding")
    return not any(engine.count(name) for name in names)


@asynccontextmanager
async def run_rollout(kubeconfig: Path) -> AsyncIterator[Rollout]:
    """Run the setup guide's Deployments, all of whose pods are ready."""
    async with run_cluster(
        kubeconfig, prefill=make_engines("prefill"), decode=make_engines("decode")
    ) as cluster:
        rollout = Rollout(cluster)
        for engine in (*cluster.stack.prefill, *cluster.stack.decode):
            if engine.config.revision == NEW:
                await rollout.stop(engine)
        for thing in read_guide():
            if thing["kind"] == "Deployment":
                cluster.api.store.create(thing)
        cluster.api.run_deployments(rollout.allocate, rolling=True)
        await rollout.finish(OLD, *REPLICAS)
        await cluster.wait_for_pods(6)
        yield rollout


async def test_a_rolling_update_mixes_no_versions_and_loses_no_request(tmp_path: Path) -> None:
    async with run_rollout(tmp_path / "kubeconfig") as rollout, rollout.load(clients=6):
        assert set(await rollout.pass_requests(20)) == {Served(OLD, OLD)}

        # Both at once, each at its own pace.
        for role in REPLICAS:
            rollout.set_image(role, NEW)
        await rollout.finish(NEW, *REPLICAS)
        together = [*rollout.served]
        assert set(await rollout.pass_requests(20)) == {Served(NEW, NEW)}

        # Back again, one after the other: for a while there is no pair at all.
        rollout.set_image("prefill", OLD)
        await rollout.finish(OLD, "prefill")
        assert set((await rollout.pass_requests(30))[8:]) == {Served("", NEW)}
        rollout.set_image("decode", OLD)
        await rollout.finish(OLD, "decode")
        assert set((await rollout.pass_requests(30))[8:]) == {Served(OLD, OLD)}

    assert rollout.lost == []
    pairs = {served for served in rollout.served if served.prefill}
    assert pairs == {Served(OLD, OLD), Served(NEW, NEW)}
    # Both versions serve in the midst of it, as neither is idle until its last pod ends.
    first_new = together.index(Served(NEW, NEW))
    assert Served(OLD, OLD) in together[first_new:]
