"""The kustomizations under `deploy/`, built with the real kubectl."""

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from pdrouter.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

Object = dict[str, Any]

KUSTOMIZATIONS = sorted(
    path.parent
    for path in DEPLOY.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
)
COMPONENTS = sorted(
    path.parent
    for path in DEPLOY.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Component"
)
OVERLAYS = (DEPLOY / "overlays" / "envoy-gateway", DEPLOY / "overlays" / "aibrix")
ROUTING = ("endpoint-override", "original-dst")
PATCHING = ("original-dst", "token-accounting", "listener-patch", "tracing")
"""Components with an EnvoyPatchPolicy."""
ON_THEIR_OWN = ("envoy-gateway", "engine-tls")
"""The first begins all; the last needs engines that serve HTTPS, their Service and their CA."""
EVERYTHING = {
    routing: (
        "envoy-gateway",
        routing,
        *(path.name for path in COMPONENTS if path.name not in (*ROUTING, *ON_THEIR_OWN)),
    )
    for routing in ROUTING
}
"""All components that go with a way to the chosen pod."""


def run_kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Return what kubectl prints; it fails the test where kubectl fails."""
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
    done = subprocess.run(
        [kubectl, *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@functools.cache
def _build(directory: Path) -> str:
    return run_kubectl("kustomize", str(directory))


def build(directory: Path) -> list[Object]:
    """Return the objects of a kustomization."""
    return list(yaml.safe_load_all(_build(directory)))


def compose(
    components: Iterable[str], on: Path = DEPLOY / "base", **kustomization: Any
) -> list[Object]:
    """Return the objects of the base with components, as an overlay of a user's own has them."""
    with tempfile.TemporaryDirectory() as directory:
        # Not through a symbolic link: kustomize resolves the directory but not the paths in it.
        overlay = Path(directory).resolve()

        def relative(path: Path) -> str:
            return os.path.relpath(path, overlay)

        (overlay / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [relative(on)],
                    "components": [relative(DEPLOY / "components" / name) for name in components],
                    **kustomization,
                }
            )
        )
        return list(yaml.safe_load_all(run_kubectl("kustomize", directory)))


def find(objects: Iterable[Object], kind: str, name: str | None = None) -> Object:
    """Return the one object of a kind, with this name where it is given."""
    found = [
        one for one in objects if one["kind"] == kind and name in {None, one["metadata"]["name"]}
    ]
    assert len(found) == 1, f"{len(found)} objects are {kind} {name or ''}"
    return found[0]


def container(deployment: Object) -> Object:
    """Return the only container of a Deployment."""
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(deployment: Object) -> dict[str, str]:
    """Return the variables of a Deployment's container; one from a field is `$FIELD`."""
    return {
        one["name"]: one["value"]
        if "value" in one
        else "$" + one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in container(deployment).get("env", [])
    }


def label(directory: Path) -> str:
    """Return a name for a test's parameter."""
    return str(directory.relative_to(DEPLOY))


def ports_of(deployment: Object) -> dict[str, int]:
    """Return the ports of a Deployment's container by name."""
    return {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}


def settings_of(deployment: Object) -> Settings:
    """Return the settings that the router reads in a pod of the Deployment."""
    options = {"kubernetes": "true"} if "--kubernetes" in container(deployment)["args"] else {}
    return Settings.load(environment(deployment), options)


def ext_proc(objects: Iterable[Object]) -> Object:
    """Return the only processor of the EnvoyExtensionPolicy."""
    (only,) = find(objects, "EnvoyExtensionPolicy")["spec"]["extProc"]
    assert isinstance(only, dict)
    return only
