"""All that an operator can set. Each setting is declared once, in the module of its group.

The command line and `docs/configuration.md` are made from the same declarations.
"""

from pdrouter.settings.combined import Refusal, SettingInvalid, Settings, declarations
from pdrouter.settings.names import (
    UnknownName,
    find_nearest_setting,
    find_unknown_names,
    find_unused_names,
)
from pdrouter.settings.table import SettingInForce, describe_settings, list_settings

__all__ = [
    "Refusal",
    "SettingInForce",
    "SettingInvalid",
    "Settings",
    "UnknownName",
    "declarations",
    "describe_settings",
    "find_nearest_setting",
    "find_unknown_names",
    "find_unused_names",
    "list_settings",
]
