"""An installation on Kubernetes whose pods say what their model's owner asks of the router."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from expectations import engines_of, run_checked_stack
from fakekube import FakeApiServer, make_pod
from waiting import wait_until

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

_PREFILL = tuple(
    EngineConfig(role="prefill", host=f"127.0.0.{host}", prefill_tokens_per_s=25_000)
    for host in (2, 3, 4)
)
_DECODE = (EngineConfig(role="decode", itl_ms=1),) * 3


@asynccontextmanager
async def run_annotated(
    directory: Path,
    configs: Sequence[Mapping[str, Any]],
    *,
    combined: Mapping[str, Any] | None = None,
    **environment: str,
) -> AsyncIterator[LocalStack]:
    """Run an installation on Kubernetes, of a pair of pods for each of these annotations.

    Args:
        directory: where to put the kubeconfig.
        configs: what the annotation `model.aibrix.ai/config` of each pair says.
        combined: the same of one more pod, which is for neither leg; None for no such pod.
        environment: further settings of the router.
    """
    number = len(configs)
    whole = [] if combined is None else [EngineConfig(role="both", itl_ms=1)]
    async with FakeApiServer() as api:
        options = StackOptions(
            prefill=_PREFILL[:number],
            decode=[*_DECODE[:number], *whole],
            environment={
                "PDROUTER_ENDPOINTS": "",
                "PDROUTER_KUBERNETES": "true",
                "PDROUTER_POD_NETWORKS": "127.0.0.0/8",
                "KUBECONFIG": str(api.write_kubeconfig(directory / "kubeconfig")),
                **environment,
            },
        )
        async with run_checked_stack(options) as stack:
            for engines, role in ((stack.prefill, "prefill"), (stack.decode[:number], "decode")):
                for engine, config in zip(engines, configs, strict=True):
                    add_pod(api, engine, role, config)
            if combined is not None:
                add_pod(api, stack.decode[number], "combined", combined)
            total = len(engines_of(stack))
            await wait_until(
                lambda: sum(pod.ready for pod in stack.router.cache.view.pods) == total
            )
            yield stack


def add_pod(
    api: FakeApiServer, engine: SimulatedEngine, role: str, config: Mapping[str, Any]
) -> None:
    labels = {
        "model.aibrix.ai/name": "demo",
        "model.aibrix.ai/port": str(engine.port),
        "role-name": role,
        "roleset-name": "all",
    }
    annotations = {"model.aibrix.ai/config": json.dumps(config)}
    name = f"{role}-{engine.port}"
    api.store.create(make_pod(name, labels=labels, annotations=annotations, ip=engine.host))
