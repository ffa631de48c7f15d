"""What is said of the settings when the router starts."""

import logging
from collections.abc import Mapping

from pdrouter.settings import find_unknown_names, find_unused_names

log = logging.getLogger(__name__)


def log_names(environment: Mapping[str, str]) -> None:
    """Log the variables that look like settings, but have no effect.

    Args:
        environment: variables.
    """
    for unknown in find_unknown_names(environment):
        fields = {"variable": unknown.name, "nearest": unknown.nearest}
        log.warning("%s", unknown, extra={"fields": fields})
    unused = find_unused_names(environment)
    if unused:
        log.info(
            "aibrix reads these variables, pdrouter does not",
            extra={"fields": {"variables": unused}},
        )
