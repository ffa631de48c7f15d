"""All checks."""

from pdrouter.tools.doctor.checks import (
    access,
    adapters,
    backends,
    bodies,
    bypasses,
    conditions,
    encoders,
    engines,
    headers,
    labels,
    limits,
    objects,
    patches,
    references,
    retries,
    revisions,
    routers,
    routes,
    selectors,
    serving,
    tiers,
    timeouts,
)
from pdrouter.tools.doctor.findings import Check
from pdrouter.tools.doctor.installation import Installation

CHECKS: tuple[Check[Installation], ...] = (
    *objects.CHECKS,
    *conditions.CHECKS,
    *references.CHECKS,
    *selectors.CHECKS,
    *bodies.CHECKS,
    *timeouts.CHECKS,
    *limits.CHECKS,
    *headers.CHECKS,
    *retries.CHECKS,
    *routes.CHECKS,
    *bypasses.CHECKS,
    *patches.CHECKS,
    *routers.CHECKS,
    *backends.CHECKS,
    *labels.CHECKS,
    *engines.CHECKS,
    *encoders.CHECKS,
    *tiers.CHECKS,
    *revisions.CHECKS,
    *adapters.CHECKS,
    *serving.CHECKS,
    *access.CHECKS,
)
"""Every check, in the order of the report."""
