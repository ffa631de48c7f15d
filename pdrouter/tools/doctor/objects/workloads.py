"""Objects that run pods, lead to them or say something of them."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pdrouter.cluster.kubernetes.objects import PodStatus
from pdrouter.tools.doctor.objects.base import KubeObject, Selector


class FieldRef(msgspec.Struct, frozen=True, rename="camel"):
    """A field of the pod that a variable is filled from."""

    field_path: str = ""


class VariableSource(msgspec.Struct, frozen=True, rename="camel"):
    """Where the value of a variable comes from; other sources are not looked at."""

    field_ref: FieldRef | None = None


class Variable(msgspec.Struct, frozen=True, rename="camel"):
    """An environment variable of a container."""

    name: str
    value: str | None = None
    value_from: VariableSource | None = None


class PortManifest(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a container declares."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class ContainerManifest(msgspec.Struct, frozen=True, rename="camel"):
    """A container of a pod."""

    name: str
    image: str = ""
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    env_from: list[Any] = []
    ports: list[PortManifest] = []
    readiness_probe: dict[str, Any] | None = None
    liveness_probe: dict[str, Any] | None = None


class PodSpecManifest(msgspec.Struct, frozen=True, rename="camel"):
    containers: list[ContainerManifest] = []
    service_account_name: str = "default"
    termination_grace_period_seconds: int = 30


class PodManifest(KubeObject, frozen=True):
    spec: PodSpecManifest = PodSpecManifest()
    status: PodStatus = PodStatus()


class TemplateMetadata(msgspec.Struct, frozen=True):
    """`metadata` of a pod template."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class PodTemplate(msgspec.Struct, frozen=True):
    """What the pods of a workload are made from."""

    metadata: TemplateMetadata = TemplateMetadata()
    spec: PodSpecManifest = PodSpecManifest()


class WorkloadSpec(msgspec.Struct, frozen=True):
    """`spec` of a Deployment or StatefulSet."""

    replicas: int = 1
    selector: Selector | None = None
    template: PodTemplate = PodTemplate()


class Workload(KubeObject, frozen=True):
    """Makes pods from a template: a Deployment, StatefulSet or DaemonSet."""

    spec: WorkloadSpec = WorkloadSpec()


class Deployment(Workload, frozen=True): ...


class StatefulSet(Workload, frozen=True):
    """A StatefulSet."""


class DaemonSet(Workload, frozen=True):
    """A DaemonSet."""


class ServicePort(msgspec.Struct, frozen=True, rename="camel"):
    port: int
    name: str = ""
    target_port: int | str | None = None


class ServiceSpec(msgspec.Struct, frozen=True):
    selector: dict[str, str] = {}
    ports: list[ServicePort] = []
    type: str = "ClusterIP"


class Service(KubeObject, frozen=True):
    spec: ServiceSpec = ServiceSpec()

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Return whether a pod with these labels is one of its endpoints."""
        selector = self.spec.selector
        return (
            bool(selector)
            and self.metadata.namespace == namespace
            and selector.items() <= labels.items()
        )


class DisruptionBudgetSpec(msgspec.Struct, frozen=True):
    """`spec` of a PodDisruptionBudget."""

    selector: Selector | None = None


class DisruptionBudget(KubeObject, frozen=True):
    """A PodDisruptionBudget."""

    spec: DisruptionBudgetSpec = DisruptionBudgetSpec()


class ModelAdapterSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a ModelAdapter."""

    base_model: str = ""
    pod_selector: Selector | None = None


class ModelAdapterStatus(msgspec.Struct, frozen=True):
    """`status` of a ModelAdapter."""

    instances: list[str] = []


class ModelAdapter(KubeObject, frozen=True):
    """A ModelAdapter (`model.aibrix.ai/v1alpha1`)."""

    spec: ModelAdapterSpec = ModelAdapterSpec()
    status: ModelAdapterStatus = ModelAdapterStatus()
