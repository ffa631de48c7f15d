"""`docs/migrate-from-aibrix.md` works as written, on a cluster with aibrix's names in it.

Its commands are run as those of `install.md` are, by the real kubectl against the fake API server.
"""

import re
from pathlib import Path

import pytest
from aibrix_names import list_metrics
from envoy_gateway_status import accept_all
from fakekube import FakeApiServer
from guides import DOCS, Shell, can_run_guides, read_steps
from manifests import Object, container, environment

import pdrouter
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES
from pdrouter.settings import Settings, declarations

PACKAGE = Path(pdrouter.__file__).parent
PAGE = "migrate-from-aibrix.md"
TEXT = (DOCS / PAGE).read_text()
TROUBLES = (DOCS / "troubleshooting.md").read_text()
STEPS = read_steps(PAGE)
PLUGIN = ("deployments", "aibrix-gateway-plugins")
NAMESPACE = "aibrix-system"
# What aibrix's own manifests set, beside references to its pod.
VARIABLES = {
    "REDIS_HOST": "aibrix-redis-master",
    "REDIS_PORT": "6379",
    "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "50",
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": "60",
    "AIBRIX_PREFIX_CACHE_TOKENIZER_TYPE": "character",
    "AIBRIX_PREFIX_CACHE_BLOCK_SIZE": "128",
    "AIBRIX_PREFIX_CACHE_STANDARD_DEVIATION_FACTOR": "2",
    "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES": "4194304",
}

pytestmark = pytest.mark.skipif(not can_run_guides(), reason="a basic Unix tool is missing")


def make_deployment(name: str, namespace: str, app: str, image: str) -> Object:
    variables = [{"name": key, "value": value} for key, value in VARIABLES.items()]
    plugin = {"name": "gateway-plugin", "image": image, "env": variables}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": app}},
            "template": {"metadata": {"labels": {"app": app}}, "spec": {"containers": [plugin]}},
        },
    }


def fill(api: FakeApiServer) -> None:
    """Make what aibrix has installed, as far as the guide's commands touch it."""
    for namespace in (NAMESPACE, "envoy-gateway-system"):
        api.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    image = "aibrix/gateway-plugins:v0.7.0"
    api.store.create(make_deployment(PLUGIN[1], NAMESPACE, "gateway-plugins", image))
    image = "docker.io/envoyproxy/gateway:v1.5.0"
    api.store.create(make_deployment("envoy-gateway", "envoy-gateway-system", "eg", image))
    api.store.create(
        {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyExtensionPolicy",
            "metadata": {
                "name": "aibrix-gateway-plugins-extension-policy",
                "namespace": NAMESPACE,
            },
            "spec": {"extProc": [{"messageTimeout": "60s"}]},
        }
    )
    api.run_deployments(lambda _: "10.0.0.1")


async def test_its_commands_print_what_it_says(tmp_path: Path) -> None:
    async with FakeApiServer(termination_delay=0.02) as api:
        fill(api)
        shell = Shell(tmp_path, KUBECONFIG=str(api.write_kubeconfig(tmp_path / "kubeconfig")))
        images = []
        for step in STEPS:
            await shell.check(step)
            accept_all(api)
            plugin = api.store.get(*PLUGIN, namespace=NAMESPACE)
            images.append(container(plugin)["image"])
            if images[-1].startswith("registry.example.com/"):
                # The router starts with what aibrix has set, and with what the guide changes.
                settings = Settings.load(environment(plugin), {"kubernetes": "true"})
                assert settings.routing_algorithm == "pd"
                assert settings.prefill_timeout_s == 590
    ours, former = "registry.example.com/pdrouter:0.1.0", "aibrix/gateway-plugins:v0.7.0"
    assert list(dict.fromkeys(images)) == [former, ours]
    assert images[:4] == [former, ours, former, ours]
    assert plugin["spec"]["replicas"] == 0


def row(name: str) -> str:
    (found,) = re.findall(rf"^\| {name} \|.*$", TEXT, re.MULTILINE)
    return str(found)


def test_the_score_policies_are_those_that_there_are() -> None:
    ours = row("Score policies of `pd`").split(" | ")[-1]

    assert set(re.findall(r"`([a-z_]+)`", ours)) == {*PREFILL_POLICIES, *DECODE_POLICIES}


def test_the_metrics_of_aibrix_that_are_described_are_those_that_there_are() -> None:
    section = (DOCS / "metrics.md").read_text().split("## aibrix's metrics")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:gateway|pd_selected)_[a-z0-9_]+)`", section))

    ours = {name for name in list_metrics() if not name.startswith("pdrouter_")}
    assert ours <= named
    statuses = {name for name in named - ours if not name.endswith(("_total", "_requests"))}
    assert named - ours - statuses - {"gateway_pod"} == set()


def test_the_labels_that_it_names_are_read() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    names = set(re.findall(r"`([a-z]+\.aibrix\.ai/[a-z-]*)", TEXT))

    assert {name for name in names if name not in source} == set()


def test_the_variables_that_it_names_exist() -> None:
    read = {declaration.variable for declaration in declarations().values()}

    assert set(re.findall(r"\bPDROUTER_[A-Z_]+", TEXT)) <= read


def test_the_errors_that_it_names_are_those_of_the_router() -> None:
    section = TEXT.split("### Errors")[1].split("\n### ")[0]
    ours = [line.rsplit(" | ", 1)[1] for line in section.splitlines() if line.startswith("| ")]
    named = {
        (status, code)
        for cell in ours
        for status, codes in re.findall(r"(\d{3}) ((?:`\w+`(?:, )?)+)", cell)
        for code in re.findall(r"`(\w+)`", codes)
    }
    rows = set(re.findall(r"^\| (\d{3}) \| `(\w+)`", TROUBLES, re.MULTILINE))

    assert len(named) > 15
    assert named - rows == set()
