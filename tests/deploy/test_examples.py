"""The examples' pods are what the router, and the engines in them, expect."""

import argparse

import pytest
import yaml
from manifests import DEPLOY, build, container, find, ports_of

from pdrouter.tools.simulation.command import add_arguments


@pytest.mark.parametrize("name", ["trainium2", "gpu", "simulated"])
def test_the_router_takes_the_pods_for_a_pair(name: str) -> None:
    objects = build(DEPLOY / "examples" / name)
    for role, replicas in (("prefill", 2), ("decode", 4)):
        deployment = find(objects, "Deployment", role)
        metadata = deployment["spec"]["template"]["metadata"]

        assert deployment["spec"]["replicas"] == replicas
        assert metadata["labels"] == {"role-name": role, "model.aibrix.ai/name": "llama31-8b"}
        assert int(metadata["annotations"]["model.aibrix.ai/port"]) in ports_of(deployment).values()


@pytest.mark.parametrize("name", ["trainium2", "gpu"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_handles_name_an_address_that_other_nodes_reach(name: str, role: str) -> None:
    deployment = find(build(DEPLOY / "examples" / name), "Deployment", role)
    variables = {one["name"]: one for one in container(deployment)["env"]}

    host = variables["VLLM_NIXL_SIDE_CHANNEL_HOST"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert host == "status.podIP"
    assert int(variables["VLLM_NIXL_SIDE_CHANNEL_PORT"]["value"]) == ports_of(deployment)["nixl"]


@pytest.mark.parametrize("name", ["trainium2", "gpu"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_connector_speaks_nixl(name: str, role: str) -> None:
    deployment = find(build(DEPLOY / "examples" / name), "Deployment", role)
    (config,) = [
        yaml.safe_load(argument.partition("=")[2])
        for argument in container(deployment)["args"]
        if argument.startswith("--kv-transfer-config=")
    ]

    assert config["kv_connector"] == "NixlConnector"
    assert config["kv_role"] in {
        "kv_both",
        {"prefill": "kv_producer", "decode": "kv_consumer"}[role],
    }
    if name == "trainium2":
        assert config["kv_connector_extra_config"] == {"backends": ["LIBFABRIC"]}


def test_trainium_pods_ask_for_what_the_guide_gives_them() -> None:
    for role in ("prefill", "decode"):
        deployment = find(build(DEPLOY / "examples" / "trainium2"), "Deployment", role)
        resources = container(deployment)["resources"]

        assert resources["limits"] == resources["requests"]
        assert resources["limits"] == {"vpc.amazonaws.com/efa": 1, "aws.amazon.com/neuron": 16}


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_simulated_engine_takes_its_arguments(role: str) -> None:
    deployment = find(build(DEPLOY / "examples" / "simulated"), "Deployment", role)
    command, *arguments = container(deployment)["args"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    options = parser.parse_args(arguments)

    assert command == "engine"
    assert options.role == role
    assert options.port == ports_of(deployment)["http"]


def test_an_adapter_is_loaded_by_pods_of_both_roles() -> None:
    adapter = find(build(DEPLOY / "examples" / "model-adapter"), "ModelAdapter")["spec"]

    for role in ("prefill", "decode"):
        pod = find(build(DEPLOY / "examples" / "trainium2"), "Deployment", role)["spec"]["template"]
        assert adapter["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_the_models_own_route_may_lead_to_its_service() -> None:
    route = find(build(DEPLOY / "overlays" / "aibrix"), "HTTPRoute", "llama31-8b-router")
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    objects = build(DEPLOY / "examples" / "trainium2")
    service = find(objects, "Service", backend["name"])
    grant = find(objects, "ReferenceGrant")

    assert (
        service["metadata"]["namespace"] == grant["metadata"]["namespace"] == backend["namespace"]
    )
    assert grant["spec"]["from"][0]["namespace"] == route["metadata"]["namespace"]
    assert grant["spec"]["to"][0]["name"] == backend["name"]
