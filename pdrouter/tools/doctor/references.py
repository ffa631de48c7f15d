"""Which objects name which others, and what is there of what they name."""

from collections.abc import Iterator
from dataclasses import dataclass

from pdrouter.tools.doctor.objects.base import KubeObject, ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import (
    Backend,
    EnvoyProxy,
    ExtensionPolicy,
    PatchPolicy,
    Policy,
)
from pdrouter.tools.doctor.objects.gateway_api import (
    BackendRef,
    BackendTlsPolicy,
    Gateway,
    GatewayClass,
    HttpRoute,
    InferencePool,
    ParametersRef,
)
from pdrouter.tools.doctor.objects.workloads import Service
from pdrouter.tools.doctor.snapshot import Snapshot

_TYPES: dict[str, type[KubeObject]] = {
    "Backend": Backend,
    "EnvoyProxy": EnvoyProxy,
    "Gateway": Gateway,
    "GatewayClass": GatewayClass,
    "HTTPRoute": HttpRoute,
    "InferencePool": InferencePool,
    "Service": Service,
}
"""Kinds that are looked for; others may be anybody's."""


@dataclass(frozen=True, slots=True)
class Naming:
    """A place where an object names another.

    Attributes:
        thing: the object.
        field: where it does so.
        target: what it names.
        backend: whether requests go there: then another namespace has to grant it.
        port: port of the target; None if it names none.
        section: part of the target, such as a listener; empty for all of it.
    """

    thing: KubeObject
    field: str
    target: ObjectRef
    backend: bool = False
    port: int | None = None
    section: str = ""

    def find(self, snapshot: Snapshot) -> KubeObject | None:
        """Return what is named; None if it is not there."""
        return snapshot.find(self.target)

    def is_missing(self, snapshot: Snapshot) -> bool:
        """Return whether what is named should be there, and is not."""
        if self.find(snapshot) or any(each.object == self.target for each in snapshot.invalid):
            return False
        return snapshot.expects(_TYPES[self.target.kind], self.target.namespace)

    def find_others(self, snapshot: Snapshot) -> list[ObjectRef]:
        """Return what else of that kind there is."""
        return [each.ref for each in snapshot.of(_TYPES[self.target.kind])]


def find_namings(snapshot: Snapshot) -> Iterator[Naming]:
    """Yield all places where objects name objects of the kinds that are looked for."""
    for thing in snapshot.objects:
        for naming in _read(thing):
            if naming.target.kind in _TYPES:
                yield naming


def _read(thing: KubeObject) -> Iterator[Naming]:
    match thing:
        case HttpRoute():
            yield from _read_route(thing)
        case Policy():
            yield from _read_policy(thing)
        case PatchPolicy():
            if (target := thing.spec.target_ref) is not None:
                yield _name(thing, "spec.targetRef.name", (target.kind, "", target.name))
        case BackendTlsPolicy():
            for index, each in enumerate(thing.spec.target_refs):
                field = f"spec.targetRefs[{index}]"
                yield _name(thing, field, (each.kind, "", each.name), each.section_name)
        case Gateway():
            field = "spec.gatewayClassName"
            yield _name(thing, field, ("GatewayClass", "", thing.spec.gateway_class_name))
            own = thing.spec.infrastructure.parameters_ref
            yield from _read_parameters(thing, "spec.infrastructure.parametersRef", own)
        case GatewayClass():
            yield from _read_parameters(thing, "spec.parametersRef", thing.spec.parameters_ref)
        case _:
            return


def _read_route(route: HttpRoute) -> Iterator[Naming]:
    for index, parent in enumerate(route.spec.parent_refs):
        target = (parent.kind, parent.namespace, parent.name)
        yield _name(route, f"spec.parentRefs[{index}]", target, parent.section_name)
    for number, rule in enumerate(route.spec.rules):
        for index, backend in enumerate(rule.backend_refs):
            yield _name_backend(route, f"spec.rules[{number}].backendRefs[{index}]", backend)


def _read_policy(policy: Policy) -> Iterator[Naming]:
    for index, target in enumerate(policy.targets):
        field = f"spec.targetRefs[{index}]" if policy.spec.target_refs else "spec.targetRef"
        yield _name(policy, field, (target.kind, "", target.name), target.section_name)
    if isinstance(policy, ExtensionPolicy):
        for number, entry in enumerate(policy.spec.ext_proc):
            for index, backend in enumerate(entry.backend_refs):
                field = f"spec.extProc[{number}].backendRefs[{index}]"
                yield _name_backend(policy, field, backend)


def _read_parameters(thing: KubeObject, field: str, ref: ParametersRef | None) -> Iterator[Naming]:
    if ref is not None:
        yield _name(thing, field, (ref.kind, ref.namespace, ref.name))


def _name_backend(thing: KubeObject, field: str, backend: BackendRef) -> Naming:
    target = ObjectRef(backend.kind, backend.namespace or thing.metadata.namespace, backend.name)
    return Naming(thing, field, target, backend=True, port=backend.port)


def _name(thing: KubeObject, field: str, target: tuple[str, str, str], section: str = "") -> Naming:
    kind, namespace, name = target
    home = "" if kind == "GatewayClass" else namespace or thing.metadata.namespace
    return Naming(thing, field, ObjectRef(kind, home, name), section=section)
