"""What is found out of a model's own HTTPRoute, and for how long it holds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fakekube import FakeApiServer

from pdrouter.cluster.kubernetes import routes as route_checks
from pdrouter.cluster.kubernetes.api import KubeApi, connect_by_kubeconfig
from pdrouter.cluster.kubernetes.routes import HttpRoutes
from pdrouter.cluster.source import RouteUnavailable

NAMESPACE = "aibrix-system"
AT_ONCE_S = 0.0
FOR_LONG_S = 3600.0


def make_route(reason: str = "Accepted") -> dict[str, Any]:
    conditions = [
        {"type": "Accepted", "reason": reason, "status": "True"},
        {"type": "ResolvedRefs", "reason": "ResolvedRefs", "status": "True"},
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "m-router", "namespace": NAMESPACE},
        "status": {"parents": [{"conditions": conditions}]},
    }


@asynccontextmanager
async def open_routes(api: FakeApiServer, path: Path, ttl_s: float) -> AsyncIterator[HttpRoutes]:
    kubeconfig = api.write_kubeconfig(path / "kubeconfig")
    async with KubeApi(connect_by_kubeconfig(kubeconfig)) as client:
        yield HttpRoutes(client, NAMESPACE, ttl_s)


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
async def test_what_was_found_holds_while_the_server_does_not_say(
    tmp_path: Path, code: int
) -> None:
    async with FakeApiServer() as api, open_routes(api, tmp_path, AT_ONCE_S) as routes:
        api.store.create(make_route())
        await routes.check("m")
        api.faults.fail(code, resource="httproutes", times=1)
        await routes.check("m")
        assert api.count("get", "httproutes") == 2
        api.store.delete("httproutes", "m-router", namespace=NAMESPACE)
        with pytest.raises(RouteUnavailable, match="aibrix-system/m-router"):
            await routes.check("m")


async def test_what_was_found_holds_while_the_server_is_away(tmp_path: Path) -> None:
    async with FakeApiServer() as api, open_routes(api, tmp_path, AT_ONCE_S) as routes:
        api.store.create(make_route("NotAllowedByListeners"))
        for _ in range(2):
            with pytest.raises(RouteUnavailable, match="NotAllowedByListeners"):
                await routes.check("m")
            await api.stop()


async def test_no_answer_to_the_first_look_is_not_remembered_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_checks, "_RETRY_S", AT_ONCE_S)
    async with FakeApiServer() as api, open_routes(api, tmp_path, FOR_LONG_S) as routes:
        api.store.create(make_route())
        api.faults.fail(500, resource="httproutes", times=1)
        with pytest.raises(RouteUnavailable, match="500"):
            await routes.check("m")
        await routes.check("m")
        await routes.check("m")
        assert api.count("get", "httproutes") == 2
