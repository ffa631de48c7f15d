"""All settings as tables, for people."""

import dataclasses
from typing import Any

from pdrouter.settings.declaration import Declaration
from pdrouter.settings.failures import FailureSettings
from pdrouter.settings.legs import LegSettings
from pdrouter.settings.pods import PodSettings
from pdrouter.settings.ports import PortSettings
from pdrouter.settings.reporting import ReportingSettings
from pdrouter.settings.routing import RoutingSettings

_GROUPS = {
    "Where the pods come from": PodSettings,
    "Which pods are chosen": RoutingSettings,
    "The legs of a request": LegSettings,
    "Pods that fail": FailureSettings,
    "Ports, and the end of the process": PortSettings,
    "What is told": ReportingSettings,
}


def describe_settings() -> str:
    """Return the tables of all settings in Markdown."""
    return "\n".join(f"## {title}\n\n{_describe_group(group)}" for title, group in _GROUPS.items())


def _describe_group(group: type) -> str:
    lines = ["| Variable | Default | Allowed | Meaning |", "|---|---|---|---|"]
    for each in dataclasses.fields(group):
        declaration: Declaration = each.metadata["declaration"]
        variable = f"`{declaration.variable}`"
        if declaration.option:
            variable += f"<br>`{declaration.option}`"
        default = _show_default(each.default)
        lines.append(f"| {variable} | {default} | {declaration.kind.allowed} | {declaration.doc} |")
    return "\n".join(lines) + "\n"


def _show_default(value: Any) -> str:  # noqa: ANN401 - any setting's
    match value:
        case None | ():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case (str(host), int(port)):
            return f"`{host}:{port}`"
        case tuple():
            return f"`{';'.join(value)}`"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"
