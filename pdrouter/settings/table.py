"""All settings as tables, for people."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pdrouter.settings.algorithms import AlgorithmSettings
from pdrouter.settings.combined import Settings, declarations, find_text
from pdrouter.settings.deadlines import DeadlineSettings
from pdrouter.settings.declaration import Declaration
from pdrouter.settings.engine_tls import EngineTlsSettings
from pdrouter.settings.failures import FailureSettings
from pdrouter.settings.fairness import FairnessSettings
from pdrouter.settings.legs import LegSettings
from pdrouter.settings.pods import PodSettings
from pdrouter.settings.ports import PortSettings
from pdrouter.settings.redis import RedisSettings
from pdrouter.settings.reporting import ReportingSettings
from pdrouter.settings.routing import RoutingSettings
from pdrouter.settings.sessions import SessionSettings
from pdrouter.settings.tracing import TracingSettings
from pdrouter.settings.users import UserSettings

DEFAULT = "default"
"""Where a value comes from that nothing gives."""

ENVIRONMENT = "environment"
"""Where a value comes from that a variable of the setting's name gives."""

_GROUPS: Mapping[str, type] = MappingProxyType(
    {
        "Where the pods come from": PodSettings,
        "Which pods are chosen": RoutingSettings,
        "The algorithms for one pod": AlgorithmSettings,
        "Sessions": SessionSettings,
        "When requests are due": DeadlineSettings,
        "Users that take turns": FairnessSettings,
        "The legs of a request": LegSettings,
        "TLS to engines": EngineTlsSettings,
        "Pods that fail": FailureSettings,
        "Users, and their limits": UserSettings,
        "Ports, and the end of the process": PortSettings,
        "What routers share": RedisSettings,
        "What is told": ReportingSettings,
        "Traces": TracingSettings,
    }
)
_ADVANCED = """## Advanced

The defaults of these fit nearly everybody: change them if a measurement says so.
"""


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """One setting as it holds.

    Attributes:
        variable: environment variable.
        value: its value, as it would be written; empty where it is unset.
        source: `default`, `environment`, the option that gives it, or where it was found.
        doc: what it means.
    """

    variable: str
    value: str
    source: str
    doc: str


def list_settings(
    settings: Settings, environment: Mapping[str, str], options: Mapping[str, str | None]
) -> Iterator[SettingInForce]:
    """Yield all settings as they hold, in the order of the tables; secrets are hidden.

    Args:
        settings: what was read of the rest.
        environment: variables.
        options: values from the command line by name of the setting.
    """
    for group in _GROUPS.values():
        for each in dataclasses.fields(group):
            declaration: Declaration = each.metadata["declaration"]
            value = getattr(settings, each.name)
            hidden = declaration.secret and value is not None
            yield SettingInForce(
                declaration.variable,
                "(secret)" if hidden else declaration.kind.write(value),
                _find_source(each.name, value, environment, options),
                declaration.doc,
            )


def _find_source(
    name: str,
    value: Any,  # noqa: ANN401 - any setting's
    environment: Mapping[str, str],
    options: Mapping[str, str | None],
) -> str:
    declaration = declarations()[name]
    text, source = find_text(name, environment, options)
    try:
        given = bool(text) and declaration.kind.parse(text) == value
    except ValueError:
        # It is refused: what holds is the default.
        given = False
    if not given:
        return DEFAULT
    return ENVIRONMENT if source == declaration.variable else source


def describe_settings() -> str:
    """Return the tables of all settings in Markdown: by group, and then the advanced ones."""
    fields = {title: dataclasses.fields(group) for title, group in _GROUPS.items()}
    tables = [
        f"## {title}\n\n{_describe(each for each in group if not _is_advanced(each))}"
        for title, group in fields.items()
    ]
    advanced = (each for group in fields.values() for each in group if _is_advanced(each))
    return "\n".join([*tables, f"{_ADVANCED}\n{_describe(advanced)}"])


def _is_advanced(setting: dataclasses.Field[Any]) -> bool:
    declaration: Declaration = setting.metadata["declaration"]
    return declaration.advanced


def _describe(settings: Iterable[dataclasses.Field[Any]]) -> str:
    lines = ["| Variable | Default | Allowed | Meaning |", "|---|---|---|---|"]
    for each in settings:
        declaration: Declaration = each.metadata["declaration"]
        variable = f"`{declaration.variable}`"
        if declaration.option:
            variable += f"<br>`{declaration.option}`"
        written = "" if each.default is None else declaration.kind.write(each.default)
        default = f"`{written}`" if written else ""
        lines.append(f"| {variable} | {default} | {declaration.kind.allowed} | {declaration.doc} |")
    return "\n".join(lines) + "\n"
