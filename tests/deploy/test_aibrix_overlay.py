"""A team that runs aibrix keeps its names, and the setup guide's commands run as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import directory_kubectl
import pytest
import yaml
from manifests import DEPLOY, ROOT, Object, build, container, environment, find
from validation import CRDS, find_problems

GUIDE = ROOT.parent / "shared" / "setup-guide.md"
COMMANDS = Path(__file__).with_name("setup-guide.sh")


@pytest.fixture(scope="module")
def overlay() -> list[Object]:
    return build(DEPLOY / "overlays" / "aibrix")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Deployment", "aibrix-gateway-plugins"),
        ("Service", "aibrix-gateway-plugins"),
        ("ServiceAccount", "aibrix-gateway-plugins"),
        ("GatewayClass", "aibrix-eg"),
        ("Gateway", "aibrix-eg"),
        ("EnvoyProxy", "aibrix-custom-proxy-config"),
        ("ClientTrafficPolicy", "aibrix-client-connection-buffersize"),
        ("EnvoyExtensionPolicy", "aibrix-gateway-plugins-extension-policy"),
        ("EnvoyPatchPolicy", "aibrix-epp"),
        ("HTTPRoute", "aibrix-reserved-router"),
        ("HTTPRoute", "llama31-8b-router"),
    ],
)
def test_names_are_those_of_aibrix(overlay: list[Object], kind: str, name: str) -> None:
    assert find(overlay, kind, name)["metadata"]["namespace"] == "aibrix-system"


def test_the_pod_looks_as_aibrix_made_it(overlay: list[Object]) -> None:
    deployment = find(overlay, "Deployment")
    ports = {port["containerPort"]: port["name"] for port in container(deployment)["ports"]}

    assert container(deployment)["name"] == "gateway-plugin"
    assert ports == {50052: "gateway", 8080: "metrics"}
    # A Deployment's selector cannot be changed: `kubectl apply` over aibrix's must find the same.
    assert deployment["spec"]["selector"]["matchLabels"] == {"app": "gateway-plugins"}
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == "aibrix-gateway-plugins"


def test_its_service_keeps_ports_and_their_names(overlay: list[Object]) -> None:
    ports = find(overlay, "Service")["spec"]["ports"]

    assert [(port["name"], port["port"]) for port in ports] == [
        ("gateway", 50052),
        ("metrics", 8080),
    ]


def test_engines_of_all_namespaces_are_seen(overlay: list[Object]) -> None:
    assert environment(find(overlay, "Deployment"))["PDROUTER_NAMESPACES"] == "*"


def test_nothing_is_used_that_came_after_envoy_gateway_1_2(overlay: list[Object]) -> None:
    (processor,) = find(overlay, "EnvoyExtensionPolicy")["spec"]["extProc"]

    assert processor["processingMode"] == {"request": {"body": "Buffered"}, "response": {}}
    assert "panicThreshold" not in processor["backendSettings"]["healthCheck"]
    assert "statusOnError" not in processor
    assert (
        "streamIdleTimeout" not in find(overlay, "ClientTrafficPolicy")["spec"]["timeout"]["http"]
    )


@pytest.fixture(scope="module")
def cluster(overlay: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay's objects after the guide's commands, run by a shell byte for byte."""
    cluster = tmp_path_factory.mktemp("cluster")
    for one in overlay:
        directory_kubectl.store(cluster, yaml.safe_dump(one))
    programs = tmp_path_factory.mktemp("programs")
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
    command = [sys.executable, directory_kubectl.__file__, str(cluster), kubectl]
    (programs / "kubectl").write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    (programs / "kubectl").chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", str(COMMANDS)],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return cluster


class TestSetupGuide:
    @staticmethod
    def read(cluster: Path, kind: str, name: str, namespace: str = "aibrix-system") -> Object:
        text = directory_kubectl.locate(cluster, namespace, kind, name).read_text()
        one = yaml.safe_load(text)
        assert isinstance(one, dict)
        return one

    @pytest.mark.skipif(not GUIDE.is_file(), reason=f"no guide at {GUIDE}")
    def test_they_are_the_guides_own(self) -> None:
        guide = GUIDE.read_text()
        commands = re.split(r"\n+(?=kubectl|#)", COMMANDS.read_text().rstrip())

        assert [command for command in commands if command not in guide] == []

    def test_image_and_variables_are_set(self, cluster: Path) -> None:
        deployment = self.read(cluster, "Deployment", "aibrix-gateway-plugins")
        variables = environment(deployment)

        assert container(deployment)["image"] == (
            "public.ecr.aws/e6d8z6l9/gateway-plugins:neuron-nixl"
        )
        assert variables["ROUTING_ALGORITHM"] == "pd"
        assert variables["AIBRIX_PREFILL_REQUEST_TIMEOUT"] == "600"
        assert variables["AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS"] == "10000"

    def test_timeouts_are_set(self, cluster: Path) -> None:
        policy = self.read(
            cluster, "EnvoyExtensionPolicy", "aibrix-gateway-plugins-extension-policy"
        )
        route = self.read(cluster, "HTTPRoute", "llama31-8b-router")

        assert policy["spec"]["extProc"][0]["messageTimeout"] == "600s"
        assert route["spec"]["rules"][0]["timeouts"]["request"] == "600s"

    def test_the_route_has_one_traffic_policy(self, cluster: Path) -> None:
        """Of two for the same route, Envoy Gateway would refuse the newer one: the guide's."""
        policies = [
            yaml.safe_load(path.read_text()) for path in cluster.glob("*.backendtrafficpolicy.*")
        ]

        assert [policy["metadata"]["name"] for policy in policies] == ["aibrix-backend-timeout"]

    @pytest.mark.skipif(not CRDS.is_dir(), reason=f"no CRDs at {CRDS}")
    def test_what_they_leave_is_valid(self, cluster: Path) -> None:
        objects = [yaml.safe_load(path.read_text()) for path in sorted(cluster.iterdir())]

        self.read(cluster, "ModelAdapter", "llama31-8b", "default")
        assert {one["kind"]: found for one in objects if (found := find_problems(one))} == {}
