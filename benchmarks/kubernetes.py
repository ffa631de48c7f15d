"""What the informer costs, beside the typed client of kubernetes_asyncio doing the same.

`python -m benchmarks.kubernetes`. The fake API server runs in a process of its own.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
from kubernetes_asyncio import client, config

from pdrouter.cluster.kubernetes.objects import PodRules
from pdrouter.cluster.kubernetes.source import KubernetesPods, create_kubernetes_source
from pdrouter.cluster.view import PodCache

PODS = 5000
EVENTS = 200
LABELS = {"model.aibrix.ai/name": "m", "role-name": "decode"}


async def serve(kubeconfig: Path) -> None:
    """Run the fake API server with all pods until killed."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kubernetes"))
    from fakekube import FakeApiServer, make_pod

    async with FakeApiServer() as api:
        for number in range(PODS):
            api.store.create(
                make_pod(
                    f"pod-{number}",
                    labels=LABELS,
                    ip=f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}",
                    managed_fields=True,
                )
            )
        api.write_kubeconfig(kubeconfig)
        print(api.url, flush=True)
        await asyncio.Event().wait()


def read_rss_mb() -> float:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class StallWatch:
    """Notes the longest time in which the event loop did nothing else."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            self.longest_s = max(self.longest_s, now - before)
            before = now


def create_source(kubeconfig: Path, cache: PodCache) -> KubernetesPods:
    """Return the informer as the router runs it."""
    return create_kubernetes_source(
        cache,
        PodRules({"vllm": ("nixl",)}),
        kubeconfig=kubeconfig,
        namespaces=("default",),
        selectors=("role-name", "!role-name,model.aibrix.ai/name"),
        merge_namespaces=False,
        httproute_namespace="none",
        httproute_ttl_s=30,
    )


async def measure_informer(kubeconfig: Path, url: str) -> float:
    """Print what the informer costs; return the CPU seconds from list to routable."""
    cache = PodCache()
    gc.collect()
    rss, cpu = read_rss_mb(), time.process_time()
    async with create_source(kubeconfig, cache) as source:
        watching = asyncio.create_task(source.watch())
        while not cache.synced:
            await asyncio.sleep(0.001)
        cost = time.process_time() - cpu
        gc.collect()
        grown = read_rss_mb() - rss
        latencies = await measure_events(cache, url)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    print(f"  list to routable      {cost * 1000:8.1f} ms of CPU, {grown:.1f} MB more memory")
    print(
        f"  event to routable     {statistics.median(latencies) * 1000:8.1f} ms median,"
        f" {max(latencies) * 1000:.1f} ms at the most, of {len(latencies)}"
    )
    return cost


async def measure_events(cache: PodCache, url: str) -> list[float]:
    """Return the seconds from an API server's answer to a change until it is in the view."""
    latencies = []
    async with aiohttp.ClientSession() as session:
        for number in range(EVENTS):
            name, status = f"pod-{number % 50}", "False" if number % 100 < 50 else "True"
            patch = {"status": {"conditions": [{"type": "Ready", "status": status}]}}
            path = f"{url}/api/v1/namespaces/default/pods/{name}/status"
            headers = {"content-type": "application/merge-patch+json"}
            async with session.patch(path, json=patch, headers=headers) as response:
                response.raise_for_status()
            start = time.perf_counter()
            while any(
                pod.ready != (status == "True") for pod in cache.view.pods if pod.name == name
            ):
                await asyncio.sleep(0.001)
            latencies.append(time.perf_counter() - start)
    return latencies


async def measure_stall(kubeconfig: Path) -> None:
    """Print how long the informer holds the event loop at the most, from start to sync."""
    cache, stalls = PodCache(), StallWatch()
    async with create_source(kubeconfig, cache) as source:
        watching = asyncio.create_task(source.watch())
        ticking = asyncio.create_task(stalls.run())
        while not cache.synced:
            await asyncio.sleep(0.001)
        for task in (watching, ticking):
            task.cancel()
        await asyncio.gather(watching, ticking, return_exceptions=True)
    print(f"  longest stall         {stalls.longest_s * 1000:8.1f} ms")


async def measure_typed(kubeconfig: Path) -> float:
    """Print what the typed client costs for the same list; return its CPU seconds."""
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    gc.collect()
    rss, cpu = read_rss_mb(), time.process_time()
    async with client.ApiClient(configuration) as api:
        pods = await client.CoreV1Api(api).list_namespaced_pod(
            "default", label_selector="role-name"
        )
        cost = time.process_time() - cpu
        gc.collect()
        grown = read_rss_mb() - rss
        print(
            f"  typed client's list   {cost * 1000:8.1f} ms of CPU, {grown:.1f} MB more memory"
            f" ({len(pods.items)} pods)"
        )
    return cost


async def measure() -> None:
    """Measure everything against one server."""
    with tempfile.TemporaryDirectory() as directory:
        kubeconfig = Path(directory) / "kubeconfig"
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.kubernetes", "--serve", str(kubeconfig)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            if server.stdout is None:
                raise RuntimeError("the server has no output")
            url = (await server.stdout.readline()).decode().strip()
            print(f"{PODS:,} pods")
            ours = await measure_informer(kubeconfig, url)
            await measure_stall(kubeconfig)
            typed = await measure_typed(kubeconfig)
            print(f"  ratio                 {typed / ours:8.1f} x the informer's CPU")
        finally:
            server.kill()
            await server.wait()


def main() -> None:
    """Measure, or be the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path)
    options = parser.parse_args()
    # As the router does once it has started.
    gc.freeze()
    asyncio.run(serve(options.serve) if options.serve else measure())


if __name__ == "__main__":
    main()
