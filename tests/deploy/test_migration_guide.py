"""`docs/migrate-from-aibrix.md` works as written, on a cluster with aibrix's names in it.

Its commands are run as those of `install.md` are, by the real kubectl against the fake API server.
"""

import re
from pathlib import Path

import pytest
from envoy_gateway_status import accept_all
from fakekube import FakeApiServer
from guides import DOCS, Shell, can_run_guides, read_steps
from manifests import Object, container, environment
from prometheus_client.parser import text_string_to_metric_families

import pdrouter
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import WIRES
from pdrouter.load.ledger import Ledger
from pdrouter.load.scrape_stats import ScrapeStats
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES
from pdrouter.settings import Settings, declarations
from pdrouter.settings.aibrix import UNUSED_AIBRIX_VARIABLES
from pdrouter.settings.choices import STRATEGY_NAMES
from pdrouter.telemetry.requests import RequestTelemetry

PACKAGE = Path(pdrouter.__file__).parent
PAGE = "migrate-from-aibrix.md"
TEXT = (DOCS / PAGE).read_text()
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


# What aibrix's plugin exports of its own at the commit that the page names.
AIBRIX_METRICS = {
    "gateway_request_total",
    "gateway_request_model_success_total",
    "gateway_request_model_fail_total",
    "gateway_prefill_request_success_total",
    "gateway_prefill_request_fail_total",
    "gateway_prompt_token_bucket_total",
    "gateway_completion_token_bucket_total",
    "gateway_input_tokens_total",
    "gateway_output_tokens_total",
    "gateway_requests_with_usage_total",
    "pd_selected_prefill_pod_total",
    "pd_selected_decode_pod_total",
    "gateway_ttft_bucket_total",
    "gateway_routing_time_bucket_total",
    "gateway_prefill_time_bucket_total",
    "gateway_kv_transfer_time_bucket_total",
    "gateway_decode_time_bucket_total",
    "gateway_tpot_bucket_total",
    "gateway_total_time_bucket_total",
    "gateway_first_token_delay_over_1s_total",
    "gateway_in_flight_requests",
    "gateway_model_in_flight_requests",
    "gateway_prefill_outstanding_requests",
    "llm_engine_metrics_query_fail",
    "prometheus_query_fail",
    "model_replicas",
    "vtc_bucket_size_active",
}


def list_metrics() -> set[str]:
    """Return the names of all metrics of the router, as Prometheus has them."""
    telemetry = RequestTelemetry(PodCache(), Ledger(), scrapes=ScrapeStats())
    families = text_string_to_metric_families(telemetry.metrics.render().decode())
    return {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }


def row(name: str) -> str:
    (found,) = re.findall(rf"^\| {name} \|.*$", TEXT, re.MULTILINE)
    return str(found)


def test_the_variables_that_stay_are_those_that_are_read() -> None:
    read = {declaration.variable for declaration in declarations().values()}
    usual = {"KUBECONFIG", "POD_NAMESPACE", "POD_IP", "POD_NAME"}
    ours = {name for name in read if not name.startswith("PDROUTER_")} - usual

    assert set(re.findall(r"`([A-Z_]+)`", row("Variables"))) == ours


def test_the_variables_that_are_not_read_are_none_of_ours() -> None:
    read = {declaration.variable for declaration in declarations().values()}
    named = {name.replace("*", ".*") for name in re.findall(r"`([A-Z_*]+)`", row("Not read"))}

    assert named
    assert {name for name in read for pattern in named if re.fullmatch(pattern, name)} == set()


def test_the_score_policies_are_those_that_there_are() -> None:
    ours = row("Score policies of `pd`").split(" | ")[-1]

    assert set(re.findall(r"`([a-z_]+)`", ours)) == {*PREFILL_POLICIES, *DECODE_POLICIES}


def test_all_variables_that_aibrix_has_no_use_for_here_are_named() -> None:
    """Those that the router passes over in silence at its start, and no others of aibrix's."""
    named = re.findall(r"`([A-Z_*]+)`", row("Not read"))
    patterns = [name.replace("*", ".*") for name in named]

    assert {
        name
        for name in UNUSED_AIBRIX_VARIABLES
        if not any(re.fullmatch(pattern, name) for pattern in patterns)
    } == set()
    assert {
        pattern
        for pattern in patterns
        if pattern.startswith("AIBRIX_")
        and not any(re.fullmatch(pattern, name) for name in UNUSED_AIBRIX_VARIABLES)
    } == set()


def test_the_metrics_that_are_not_there_are_those_of_aibrix_that_we_lack() -> None:
    ours = list_metrics()
    there, missing = row("Metrics").split("Not there: ")
    named = set(re.findall(r"`([a-z0-9_*]+)`", missing))
    instead = {name for name in named if name.startswith("pdrouter_")}

    assert instead <= ours
    assert {name for name in named - instead if "*" not in name} == AIBRIX_METRICS - ours
    for family in (name.removesuffix("*") for name in named if "*" in name):
        assert not [name for name in ours if name.startswith(family)]
    for family in re.findall(r"`([a-z_]+_)\*`", there.split(" | ")[2]):
        assert [name for name in ours if name.startswith(family)]
    assert {name for name in ours if not name.startswith("pdrouter_")} <= AIBRIX_METRICS


def test_the_metrics_of_aibrix_that_are_described_are_those_that_there_are() -> None:
    section = (DOCS / "metrics.md").read_text().split("## aibrix's metrics")[1].split("\n## ")[0]
    named = set(re.findall(r"`((?:gateway|pd_selected)_[a-z0-9_]+)`", section))

    ours = {name for name in list_metrics() if not name.startswith("pdrouter_")}
    assert ours <= named
    statuses = {name for name in named - ours if not name.endswith(("_total", "_requests"))}
    assert named - ours - statuses - {"gateway_pod"} == set()


def test_the_strategies_and_engines_are_those_that_there_are() -> None:
    intro = TEXT.split("Read [what differs]")[1].split("\n\n")[0]
    for text in (
        row("Strategies").split(" | ")[2].split(", one name")[0],
        intro.split(" are the")[0],
    ):
        assert tuple(re.findall(r"`([a-z-]+)`", text)) == STRATEGY_NAMES
    engines = intro.split("strategies, ")[1].split(" the only engines")[0]
    assert tuple(re.findall(r"`([a-z]+)`", engines)) == tuple(WIRES)


def test_what_is_not_read_of_pods_is_named() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    names = set(re.findall(r"`([a-z]+\.aibrix\.ai/[a-z-]*)", TEXT))

    assert "modelclaim.aibrix.ai/" not in source
    assert "modelclaim.aibrix.ai/" in row("ModelClaim, sleep and wake")
    assert {name for name in names if name not in source} == {"modelclaim.aibrix.ai/"}


def test_the_variables_that_it_names_exist() -> None:
    read = {declaration.variable for declaration in declarations().values()}

    assert set(re.findall(r"\bPDROUTER_[A-Z_]+", TEXT)) <= read
