"""Scenario `pods`: many pods from the Kubernetes API, whose readiness changes under load.

`python -m benchmarks.speed.pods --kubeconfig FILE ...` is the API server: it changes the readiness
of a pod again and again.
"""

import argparse
import asyncio
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.speed.engines import MODEL, name_ip
from benchmarks.speed.load import Load
from benchmarks.speed.plan import Plan
from benchmarks.speed.processes import read_line, run_module
from benchmarks.speed.requests import measure_load
from benchmarks.speed.results import Results
from benchmarks.speed.variants import run_router_variant
from benchmarks.steps import make_body

NAME = "pods"
COUNTS = (100, 1000)
_CHANGES_PER_S = 20
_CONCURRENCY = 16
_FIRST_REQUESTS = 200
_MOST_ROUNDS = 3


async def run(plan: Plan, results: Results) -> None:
    """Measure the router with ever more pods."""
    body = plan.directory / "pods-body"
    body.write_bytes(make_body(8000))
    for count in COUNTS[:1] if plan.quick else COUNTS:
        kubeconfig = plan.directory / f"kubeconfig-{count}"
        options = {
            "kubeconfig": str(kubeconfig),
            "pods": str(count),
            "prefill-port": str(plan.engines.prefill_port),
            "decode-port": str(plan.engines.decode_port),
        }
        arguments = itertools.chain.from_iterable(
            (f"--{key}", text) for key, text in options.items()
        )
        environment = {
            "PDROUTER_KUBERNETES": "true",
            "KUBECONFIG": str(kubeconfig),
            "PDROUTER_NAMESPACES": "default",
            "PDROUTER_POD_NETWORKS": "127.0.0.0/8",
        }
        async with run_module("benchmarks.speed.pods", *arguments) as api:
            await read_line(api)
            async with run_router_variant(environment) as variant:
                requests = _FIRST_REQUESTS
                for number in range(min(plan.rounds, _MOST_ROUNDS) + 1):
                    figures = await measure_load(
                        variant, Load(variant.url, body, requests, _CONCURRENCY)
                    )
                    requests = max(_CONCURRENCY, int(2 * plan.sample_s * figures["requests_per_s"]))
                    if number:  # The first is for warming up.
                        results.add(NAME, f"{count} pods", variant.name, figures)
        plan.tell(f"{NAME}: {count} pods are done")


def _list_pods(options: argparse.Namespace) -> list[Mapping[str, Any]]:
    ports = {"prefill": options.prefill_port, "decode": options.decode_port}
    return [
        {
            "name": f"{role}-{number}",
            "labels": {"model.aibrix.ai/name": MODEL, "role-name": role},
            "annotations": {"model.aibrix.ai/port": str(port)},
            "ip": name_ip(number),
        }
        for number in range(options.pods // 2)
        for role, port in ports.items()
    ]


async def _serve(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "kubernetes"))
    from fakekube import FakeApiServer, make_pod

    pods = _list_pods(options)
    random = Random(1)
    async with FakeApiServer() as api:
        for pod in pods:
            api.store.create(make_pod(**pod))
        api.write_kubeconfig(options.kubeconfig)
        print(api.url, flush=True)
        unready: str | None = None
        while True:
            await asyncio.sleep(1 / _CHANGES_PER_S)
            # One pod at a time is not ready, so that there is always another.
            name, status = (unready, "True") if unready else (random.choice(pods)["name"], "False")
            condition = {"status": {"conditions": [{"type": "Ready", "status": status}]}}
            api.store.patch("pods", name, condition)
            unready = None if unready else name


def main() -> None:
    """Be the API server until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    for name in ("--pods", "--prefill-port", "--decode-port"):
        parser.add_argument(name, type=int, required=True)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
