"""The router's own objects agree with each other and with the program."""

from typing import Any

import pytest
from manifests import (
    KUSTOMIZATIONS,
    Object,
    build,
    compose,
    container,
    environment,
    ext_proc,
    find,
    label,
    ports_of,
    settings_of,
)

from pdrouter import __version__
from pdrouter.settings import Settings, declarations

LIST_AND_WATCH = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": ["model.aibrix.ai"], "resources": ["modeladapters"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    },
)
READ_NAMESPACES = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]}
READ_ROUTES = {
    "apiGroups": ["gateway.networking.k8s.io"],
    "resources": ["httproutes"],
    "verbs": ["get"],
}


class TestReferences:
    """Each name that an object gives is that of another."""

    def test_policies_have_targets(self, objects: list[Object]) -> None:
        for one in objects:
            spec = one.get("spec", {})
            for target in [*spec.get("targetRefs", ()), *filter(None, [spec.get("targetRef")])]:
                find(objects, target["kind"], target["name"])

    def test_routes_have_a_gateway_and_backends(self, objects: list[Object]) -> None:
        for route in (one for one in objects if one["kind"] == "HTTPRoute"):
            for parent in route["spec"]["parentRefs"]:
                find(objects, "Gateway", parent["name"])
            for backend in route["spec"]["rules"][0]["backendRefs"]:
                if "namespace" not in backend:
                    find(objects, "Service", backend["name"])

    def test_the_gateway_has_its_class_and_its_proxy(self, objects: list[Object]) -> None:
        spec = find(objects, "Gateway")["spec"]

        find(objects, "GatewayClass", spec["gatewayClassName"])
        find(objects, "EnvoyProxy", spec["infrastructure"]["parametersRef"]["name"])

    def test_the_extension_policy_leads_to_the_routers_grpc_port(
        self, objects: list[Object]
    ) -> None:
        (backend,) = ext_proc(objects)["backendRefs"]
        service = find(objects, "Service", backend["name"])
        deployment = find(objects, "Deployment")
        (port,) = [one for one in service["spec"]["ports"] if one["port"] == backend["port"]]

        assert port["appProtocol"] == "kubernetes.io/h2c"
        assert ports_of(deployment)[port["targetPort"]] == Settings().grpc_bind[1]

    def test_selectors_match_the_pods(self, objects: list[Object]) -> None:
        deployment = find(objects, "Deployment")["spec"]
        labels = deployment["template"]["metadata"]["labels"].items()
        service = find(objects, "Service", ext_proc(objects)["backendRefs"][0]["name"])

        assert deployment["selector"]["matchLabels"].items() <= labels
        assert service["spec"]["selector"].items() <= labels
        budget = find(objects, "PodDisruptionBudget")["spec"]
        assert budget["selector"]["matchLabels"].items() <= labels
        for spread in deployment["template"]["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels

    def test_the_routers_find_each_other_by_their_service(self, objects: list[Object]) -> None:
        service = find(
            objects, "Service", environment(find(objects, "Deployment"))["PDROUTER_SERVICE"]
        )

        assert service == find(objects, "Service", ext_proc(objects)["backendRefs"][0]["name"])

    def test_names_follow_a_prefix(self) -> None:
        objects = compose(["envoy-gateway", "endpoint-override", "tls"], namePrefix="blue-")

        assert {one["metadata"]["name"] for one in objects} == {
            "blue-pdrouter",
            "blue-pdrouter-decode",
        }
        self.test_policies_have_targets(objects)
        self.test_routes_have_a_gateway_and_backends(objects)
        self.test_the_gateway_has_its_class_and_its_proxy(objects)
        self.test_the_routers_find_each_other_by_their_service(objects)


class TestPod:
    def test_the_router_accepts_its_environment(self, objects: list[Object]) -> None:
        deployment = find(objects, "Deployment")
        known = {declaration.variable for declaration in declarations().values()}

        assert settings_of(deployment).kubernetes
        assert set(environment(deployment)) <= known

    def test_probes_ask_the_http_port(self, objects: list[Object]) -> None:
        deployment = find(objects, "Deployment")
        probes = {
            kind: container(deployment)[kind + "Probe"]["httpGet"]
            for kind in ("readiness", "liveness")
        }

        assert {kind: probe["path"] for kind, probe in probes.items()} == {
            "readiness": "/readyz",
            "liveness": "/healthz",
        }
        for probe in probes.values():
            assert ports_of(deployment)[probe["port"]] == Settings().http_bind[1]

    def test_prometheus_finds_the_http_port(self, objects: list[Object]) -> None:
        annotations = find(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]

        assert annotations == {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(Settings().http_bind[1]),
            "prometheus.io/path": "/metrics",
        }

    def test_it_needs_no_rights_on_the_node(self, objects: list[Object]) -> None:
        deployment = find(objects, "Deployment")
        pod = deployment["spec"]["template"]["spec"]
        security = container(deployment)["securityContext"]

        assert pod["securityContext"]["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert [mount["mountPath"] for mount in container(deployment)["volumeMounts"]] == ["/tmp"]
        assert all("emptyDir" in volume for volume in pod["volumes"])

    def test_the_cpu_is_requested_but_not_limited(self, objects: list[Object]) -> None:
        resources = container(find(objects, "Deployment"))["resources"]

        assert resources["requests"]["cpu"] == "1"
        assert set(resources["limits"]) == {"memory"}

    @pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=label)
    def test_the_image_is_that_of_this_version(self, directory: Any) -> None:
        images = [
            container(one)["image"] for one in build(directory) if one["kind"] == "Deployment"
        ]

        assert [
            image
            for image in images
            if image.startswith("pdrouter") and image != f"pdrouter:{__version__}"
        ] == []


class TestRights:
    def test_the_base_may_watch_its_own_namespace(self) -> None:
        objects = compose([], namespace="inference")
        binding = find(objects, "RoleBinding")

        assert tuple(find(objects, "Role")["rules"]) == LIST_AND_WATCH
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "pdrouter", "namespace": "inference"}
        ]
        assert environment(find(objects, "Deployment"))["PDROUTER_NAMESPACES"] == (
            "$metadata.namespace"
        )

    def test_cluster_wide_may_watch_all_namespaces(self) -> None:
        objects = compose(["cluster-wide"], namespace="inference")
        binding = find(objects, "ClusterRoleBinding")

        assert tuple(find(objects, "ClusterRole")["rules"]) == (*LIST_AND_WATCH, READ_NAMESPACES)
        assert binding["roleRef"]["kind"] == "ClusterRole"
        assert binding["subjects"][0]["namespace"] == "inference"
        assert not [one for one in objects if one["kind"] in {"Role", "RoleBinding"}]
        assert environment(find(objects, "Deployment"))["PDROUTER_NAMESPACES"] == "*"

    def test_routes_are_read_only_without_a_strategy(self) -> None:
        objects = compose(["model-routes"], namespace="inference")
        variables = environment(find(objects, "Deployment"))

        assert tuple(find(objects, "Role")["rules"]) == (*LIST_AND_WATCH, READ_ROUTES)
        assert "ROUTING_ALGORITHM" not in variables
        assert variables["PDROUTER_HTTPROUTE_NAMESPACE"] == "$metadata.namespace"

    def test_with_a_strategy_they_are_not(self, objects: list[Object]) -> None:
        (role,) = [one for one in objects if one["kind"] in {"Role", "ClusterRole"}]
        has_strategy = "ROUTING_ALGORITHM" in environment(find(objects, "Deployment"))

        assert has_strategy != (READ_ROUTES in role["rules"])


class TestComponents:
    def test_tls_gives_the_router_what_the_policy_checks(self) -> None:
        objects = compose(["envoy-gateway", "endpoint-override", "tls"])
        deployment = find(objects, "Deployment")
        settings = settings_of(deployment)
        (target,) = find(objects, "BackendTLSPolicy")["spec"]["targetRefs"]
        ports = find(objects, "Service", target["name"])["spec"]["ports"]
        (mount,) = [m for m in container(deployment)["volumeMounts"] if m["name"] == "tls"]

        assert target["sectionName"] in [port["name"] for port in ports]
        assert not [port for port in ports if port.get("appProtocol") == "kubernetes.io/h2c"]
        assert str(settings.tls_certificate) == mount["mountPath"] + "/tls.crt"
        assert str(settings.tls_key) == mount["mountPath"] + "/tls.key"

    def test_the_autoscaler_owns_the_replicas(self) -> None:
        objects = compose(["autoscaling"])
        deployment = find(objects, "Deployment")
        target = find(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]

        assert "replicas" not in deployment["spec"]
        assert target["name"] == deployment["metadata"]["name"]

    def test_the_network_policy_opens_the_ports_that_are_served(self) -> None:
        objects = compose(["network-policy"])
        spec = find(objects, "NetworkPolicy")["spec"]
        deployment = find(objects, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]

        assert spec["podSelector"]["matchLabels"].items() <= labels.items()
        assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} == set(
            ports_of(deployment).values()
        )

    def test_only_the_pod_monitor_scrapes_where_there_is_one(self) -> None:
        objects = compose(["monitoring"])
        deployment = find(objects, "Deployment")
        monitor = find(objects, "PodMonitor")["spec"]
        template = deployment["spec"]["template"]["metadata"]

        assert "annotations" not in template
        assert monitor["selector"]["matchLabels"].items() <= template["labels"].items()
        (endpoint,) = monitor["podMetricsEndpoints"]
        assert ports_of(deployment)[endpoint["port"]] == Settings().http_bind[1]
