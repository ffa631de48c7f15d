"""The component `tls`: Envoy speaks TLS to the router, in its health checks as well."""

from pathlib import Path

import httpx
import pytest
from certificates import issue
from envoy_gateway import translate
from envoy_gateway_clusters import ROUTER
from expectations import eventually
from manifests import Object, compose, find

from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import StackOptions, run_stack

MODEL = "llama31-8b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture
def objects() -> list[Object]:
    return compose(["envoy-gateway", "endpoint-override", "tls"], namespace="inference")


def test_connections_to_the_router_name_their_protocol(objects: list[Object]) -> None:
    """Unset, Envoy Gateway sends none with health checks, and a gRPC server hangs up."""
    assert find(objects, "EnvoyProxy")["spec"]["backendTLS"] == {"alpnProtocols": ["h2"]}


async def test_health_checks_find_the_router_well(objects: list[Object], tmp_path: Path) -> None:
    pair = issue(tmp_path, "pdrouter")
    metadata = {"name": "pdrouter-ca", "namespace": "inference"}
    authority = {"kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": pair.ca.read_text()}}
    environment = {
        "PDROUTER_TLS_CERTIFICATE": str(pair.cert),
        "PDROUTER_TLS_KEY": str(pair.key),
    }
    async with run_stack(StackOptions(model=MODEL, environment=environment)) as stack:
        endpoints = {
            "pdrouter": [f"127.0.0.1:{stack.router.server.port}"],
            "pdrouter-decode": [engine.address for engine in stack.decode],
        }
        bootstrap = translate([*objects, authority], endpoints)
        async with EnvoyProcess.run(bootstrap) as envoy, httpx.AsyncClient(timeout=30) as client:

            async def expect_health() -> None:
                page = await client.get(f"http://{envoy.admin}/stats?filter=cluster.{ROUTER}")
                counts = dict(line.split(": ") for line in page.text.splitlines() if ": " in line)
                assert int(counts[f"cluster.{ROUTER}.health_check.success"]) > 0
                assert counts[f"cluster.{ROUTER}.health_check.failure"] == "0"
                assert counts[f"cluster.{ROUTER}.membership_healthy"] == "1"

            await eventually(expect_health)
            answer = await client.post(f"http://{envoy.listener}/v1/chat/completions", json=CHAT)

    assert (answer.status_code, answer.headers["x-pd-decision"]) == (200, "disaggregated")
