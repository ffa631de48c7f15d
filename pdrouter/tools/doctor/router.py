"""The router as a Deployment: which container it is, and with which settings it runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pdrouter.nearest import find_nearest
from pdrouter.settings import Refusal, Settings, declarations
from pdrouter.tools.doctor.objects.workloads import ContainerManifest, Deployment

_OWN = frozenset({"POD_NAME", "POD_IP"})
"""Variables that each pod has from itself: no object has them, and no finding needs them."""
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_SIGNS = frozenset({"ROUTING_ALGORITHM", "AIBRIX_PREFILL_REQUEST_TIMEOUT"})
"""Variables that only the router reads, and the plugin that it replaces; almost is enough."""


@dataclass(frozen=True, slots=True)
class RouterDeployment:
    """A Deployment of the router.

    Attributes:
        deployment: the Deployment.
        index: which of its containers the router is.
        environment: variables whose values are known, by name.
        unknown: variables of settings whose values are elsewhere, in a ConfigMap for example, or
            are not allowed.
        settings: the settings; those that are refused or unknown have their defaults.
        refusals: settings with which it does not start.
    """

    deployment: Deployment
    index: int
    environment: Mapping[str, str]
    unknown: frozenset[str]
    settings: Settings
    refusals: tuple[Refusal, ...]

    @property
    def container(self) -> ContainerManifest:
        return self.deployment.spec.template.spec.containers[self.index]

    def field(self, path: str) -> str:
        """Return the path of a field of its container."""
        return f"spec.template.spec.containers[{self.index}].{path}"

    def knows(self, name: str) -> bool:
        """Return whether the value of a setting is known."""
        return declarations()[name].variable not in self.unknown

    @property
    def prefill_timeout_s(self) -> float | None:
        """Deadline of the prefill leg; None if it is not known."""
        return self.settings.prefill_timeout_s if self.knows("prefill_timeout_s") else None

    @property
    def max_message_bytes(self) -> int | None:
        """Largest ext_proc message; None if it is not known."""
        return self.settings.max_message_bytes if self.knows("max_message_bytes") else None

    @property
    def routes_by_model(self) -> bool:
        """Whether requests without a strategy pass, by their model's own HTTPRoute."""
        return self.knows("routing_algorithm") and self.settings.routing_algorithm is None

    @property
    def watches_kubernetes(self) -> bool:
        """Whether pods come from the API server; aibrix's command does not say so."""
        return self.settings.endpoints is None

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces whose pods it watches, `*` for all; nothing if they are not known."""
        if not (self.knows("namespaces") and self.knows("own_namespace")):
            return ()
        own = self.settings.own_namespace or self.deployment.metadata.namespace
        return self.settings.namespaces or (own,)


def is_router(container: ContainerManifest) -> bool:
    """Return whether a container looks like the router, by its variables, image or command."""
    names = {variable.name for variable in container.env}
    if any(name.startswith("PDROUTER_") or find_nearest(name, _SIGNS) for name in names):
        return True
    words = [*container.command, *container.args]
    program = container.image.partition("@")[0] + " " + " ".join(container.command[:1])
    # The same image runs simulated engines.
    return "gateway-plugins" in program or (
        "pdrouter" in program and ("serve" in words or not container.args)
    )


def read_router(deployment: Deployment, index: int) -> RouterDeployment:
    """Return the router that a container of a Deployment is."""
    container = deployment.spec.template.spec.containers[index]
    variables = {declaration.variable for declaration in declarations().values()}
    environment: dict[str, str] = {}
    unknown: set[str] = set()
    for variable in container.env:
        if variable.value_from is None:
            environment[variable.name] = variable.value or ""
        elif (field := variable.value_from.field_ref) and field.field_path == "metadata.namespace":
            environment[variable.name] = deployment.metadata.namespace
        elif field and variable.name in _OWN:
            continue
        else:
            unknown.add(variable.name)
    if container.env_from:
        unknown |= variables - environment.keys()
    unknown &= variables
    options = _read_options([*container.command, *container.args], environment)
    settings, refusals = Settings.read(environment, options)
    unknown |= {refusal.variable for refusal in refusals}
    return RouterDeployment(
        deployment, index, MappingProxyType(environment), frozenset(unknown), settings, refusals
    )


def _read_options(words: list[str], environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return the values that a command line gives, by name of the setting."""
    words = [
        _REFERENCE.sub(lambda match: environment.get(match[1], match[0]), word) for word in words
    ]
    values: dict[str, str | None] = {}
    for name, declaration in declarations().items():
        for position, word in enumerate(words):
            option, equals, text = word.partition("=")
            if not declaration.option or option != declaration.option:
                continue
            if declaration.switch:
                values[name] = "true"
            elif equals:
                values[name] = text
            elif position + 1 < len(words):
                values[name] = words[position + 1]
    return values
