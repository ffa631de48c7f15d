"""The component `workers`: what names a port of the router names those of all workers."""

import pytest
from manifests import ROUTING, Object, compose, container, ext_proc, find, settings_of
from validation import find_problems, is_custom


@pytest.fixture(params=ROUTING)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return compose(["envoy-gateway", request.param, "tls", "network-policy", "workers"])


@pytest.fixture
def worker_ports(objects: list[Object]) -> list[int]:
    settings = settings_of(find(objects, "Deployment"))
    assert settings.workers > 1
    ports = [settings.choose_worker(number).grpc_bind[1] for number in range(settings.workers)]
    assert settings.http_bind[1] not in ports
    return ports


def test_the_service_leads_to_every_worker(objects: list[Object], worker_ports: list[int]) -> None:
    by_name = {
        port["name"]: port["containerPort"]
        for port in container(find(objects, "Deployment"))["ports"]
    }
    served = {
        port["port"]: by_name[port["targetPort"]]
        for port in find(objects, "Service", "pdrouter")["spec"]["ports"]
        if port["name"] != "http"
    }
    assert served == {port: port for port in worker_ports}


def test_envoy_spreads_requests_over_every_worker(
    objects: list[Object], worker_ports: list[int]
) -> None:
    refs = ext_proc(objects)["backendRefs"]
    # Without weights, all are equal.
    assert refs == [{"name": "pdrouter", "port": port} for port in worker_ports]


def test_envoy_spreads_its_log_over_every_worker(
    objects: list[Object], worker_ports: list[int]
) -> None:
    settings = find(objects, "EnvoyProxy")["spec"]["telemetry"]["accessLog"]["settings"]
    (log,) = [
        sink["openTelemetry"]
        for setting in settings
        for sink in setting["sinks"]
        if sink["type"] == "OpenTelemetry"
    ]
    assert log["backendRefs"] == [{"name": "pdrouter", "port": port} for port in worker_ports]


def test_a_worker_that_is_away_costs_no_request(objects: list[Object]) -> None:
    settings = ext_proc(objects)["backendSettings"]
    # Nothing that a worker may have begun to work on.
    assert settings["retry"]["retryOn"] == {"triggers": ["connect-failure", "refused-stream"]}
    assert settings["circuitBreaker"]["maxParallelRetries"] == 10_000
    assert settings["healthCheck"]["passive"]["splitExternalLocalOriginErrors"]
    assert settings["healthCheck"]["active"]["type"] == "GRPC"


def test_tls_is_spoken_to_every_worker(objects: list[Object], worker_ports: list[int]) -> None:
    ports = {
        port["name"]: port["port"]
        for port in find(objects, "Service", "pdrouter")["spec"]["ports"]
        if "appProtocol" not in port
    }
    targets = find(objects, "BackendTLSPolicy")["spec"]["targetRefs"]
    assert [ports[target["sectionName"]] for target in targets] == worker_ports
    assert {target["name"] for target in targets} == {"pdrouter"}


def test_the_network_policy_opens_every_worker(
    objects: list[Object], worker_ports: list[int]
) -> None:
    (rule,) = find(objects, "NetworkPolicy")["spec"]["ingress"][0]["ports"]
    assert list(range(rule["port"], rule["endPort"] + 1)) == worker_ports


def test_another_name_reaches_every_reference() -> None:
    objects = compose(["envoy-gateway", "endpoint-override", "tls", "workers"], namePrefix="blue-")
    service = find(objects, "Service", "blue-pdrouter")["metadata"]["name"]
    targets = find(objects, "BackendTLSPolicy")["spec"]["targetRefs"]
    named = {one["name"] for one in (*ext_proc(objects)["backendRefs"], *targets)}
    assert named == {service}


def test_without_the_others_there_is_nothing_to_change() -> None:
    objects = compose(["workers"])
    assert settings_of(find(objects, "Deployment")).workers > 1
    assert not [one for one in objects if not is_custom(one) and find_problems(one)]
