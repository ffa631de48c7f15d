"""A router finds its other replicas, and goes on alone where it may not."""

from pathlib import Path
from typing import Any

import pytest
from fakekube import FakeApiServer
from informers import run_informer, wait_for

from pdrouter.cluster.kubernetes.router_service import RouterService
from pdrouter.cluster.router_group import RouterGroup


def make_slice(
    name: str, *pods: tuple[str, bool | None], service: str = "router"
) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.0.0.1"],
                "conditions": {} if ready is None else {"ready": ready},
                "targetRef": {"kind": "Pod", "name": pod},
            }
            for pod, ready in pods
        ],
    }


async def test_replicas_are_the_ready_endpoints_of_the_service(tmp_path: Path) -> None:
    group = RouterGroup("r-0")
    async with FakeApiServer() as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        api.store.create(make_slice("one", ("r-0", True), ("r-1", None), ("r-2", False)))
        api.store.create(make_slice("other", ("x-0", True), service="engine"))
        routers = RouterService(group, "router", "default")
        async with run_informer(kubeconfig, routers=routers):
            assert group.members == {"r-0", "r-1"}
            api.store.create(make_slice("two", ("r-3", True)))
            await wait_for(lambda: "r-3" in group.members)
            assert len(group.members) == 3
            api.store.delete("endpointslices", "one", namespace="default")
            # This one is there, whether or not it is ready.
            await wait_for(lambda: group.members == {"r-0", "r-3"})


@pytest.mark.parametrize("code", [403, 404])
async def test_without_the_right_or_the_service_a_router_goes_on_alone(
    tmp_path: Path, code: int
) -> None:
    group = RouterGroup("r-0")
    async with FakeApiServer(absent=("endpointslices",) if code == 404 else ()) as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        if code == 403:
            api.faults.fail(403, resource="endpointslices", times=None)
        routers = RouterService(group, "router", "default")
        async with run_informer(kubeconfig, routers=routers) as informer:
            assert informer.restarts(str(code)) >= 1
            assert group.members == {"r-0"}
