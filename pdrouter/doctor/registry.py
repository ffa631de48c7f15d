"""All checks."""

from pdrouter.doctor.checks import (
    access,
    adapters,
    backends,
    bodies,
    engines,
    headers,
    limits,
    objects,
    routes,
    serving,
    timeouts,
)
from pdrouter.doctor.findings import Check

CHECKS: tuple[Check, ...] = (
    *objects.CHECKS,
    *bodies.CHECKS,
    *timeouts.CHECKS,
    *limits.CHECKS,
    *headers.CHECKS,
    *routes.CHECKS,
    *backends.CHECKS,
    *engines.CHECKS,
    *adapters.CHECKS,
    *serving.CHECKS,
    *access.CHECKS,
)
"""Every check, in the order of the report."""
