"""The router's own Deployment: its settings, probes, and the end of its pods."""

from collections.abc import Iterator
from math import ceil

from pdrouter.settings import find_unknown_names
from pdrouter.settings.choices import UserSource
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.workloads import DisruptionBudget
from pdrouter.tools.doctor.router import RouterDeployment

_ALGORITHM = "ROUTING_ALGORITHM"


def _find_refused_settings(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        for refusal in router.refusals:
            yield Defect(
                router.deployment.ref,
                router.field(f"env[{refusal.variable}]" if refusal.variable else "env"),
                refusal.problem,
                "set an allowed value",
            )


def _find_misspelt_algorithms(installation: Installation) -> Iterator[Defect]:
    for router, name, near in _find_unread_variables(installation):
        if near == _ALGORITHM:
            yield Defect(
                router.deployment.ref,
                router.field(f"env[{name}]"),
                "nothing reads this variable",
                f"name it {_ALGORITHM}",
            )


def _find_unknown_settings(installation: Installation) -> Iterator[Defect]:
    for router, name, near in _find_unread_variables(installation):
        if near == _ALGORITHM:
            continue
        yield Defect(
            router.deployment.ref,
            router.field(f"env[{name}]"),
            "the router has no such setting",
            f"did you mean {near}?" if near else "see `pdrouter settings` for the names",
        )


def _find_unread_variables(
    installation: Installation,
) -> Iterator[tuple[RouterDeployment, str, str | None]]:
    """Yield variables that are meant for the router but not read, with the nearest that is."""
    for router in installation.routers:
        for variable in router.container.env:
            # One by one: whoever writes a variable into a manifest means something by it, even
            # where the one that it is like is there too. A value may be elsewhere.
            for unknown in find_unknown_names({variable.name: variable.value or variable.name}):
                yield router, unknown.name, unknown.nearest


def _find_short_graces(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        if not (router.knows("lame_duck_s") and router.knows("drain_s")):
            continue
        needed = router.settings.lame_duck_s + router.settings.drain_s
        grace = router.deployment.spec.template.spec.termination_grace_period_seconds
        if grace < needed:
            yield Defect(
                router.deployment.ref,
                "spec.template.spec.terminationGracePeriodSeconds",
                f"{grace}s is less than PDROUTER_LAME_DUCK + PDROUTER_DRAIN, {needed:g}s",
                f"set it to {ceil(needed) + 20}, or PDROUTER_DRAIN lower",
            )


def _find_missing_probes(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        container = router.container
        for name, probe, path in (
            ("readinessProbe", container.readiness_probe, "/readyz"),
            ("livenessProbe", container.liveness_probe, "/healthz"),
        ):
            if probe is None:
                yield Defect(
                    router.deployment.ref,
                    router.field(name),
                    "there is none",
                    f"add one: httpGet {path} on the HTTP port, or grpc on the gRPC port",
                )


def _find_missing_budgets(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        deployment = router.deployment
        if not installation.snapshot.has_read(DisruptionBudget, deployment.metadata.namespace):
            continue
        labels = deployment.spec.template.metadata.labels
        if deployment.spec.replicas > 1 and not any(
            budget.metadata.namespace == deployment.metadata.namespace
            and budget.spec.selector is not None
            and budget.spec.selector.matches(labels)
            for budget in installation.snapshot.of(DisruptionBudget)
        ):
            yield Defect(
                deployment.ref,
                "PodDisruptionBudget spec.selector",
                "no budget selects its pods",
                "add a PodDisruptionBudget with maxUnavailable: 1",
            )


def _find_unshared_limits(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        settings, replicas = router.settings, router.deployment.spec.replicas
        limits = settings.keys_file is not None or settings.user_source is not UserSource.KEYS
        known = router.knows("redis_url") and router.knows("redis_host")
        if replicas > 1 and limits and known and settings.redis is None:
            yield Defect(
                router.deployment.ref,
                router.field("env"),
                f"there are {replicas} replicas, and no PDROUTER_REDIS_URL",
                "set PDROUTER_REDIS_URL, for example with deploy/components/redis",
            )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "setting-refused",
        Severity.ERROR,
        "A setting of the router has a value that is not allowed.",
        "The router does not start.",
        _find_refused_settings,
    ),
    Check(
        "routing-algorithm-misspelt",
        Severity.ERROR,
        "The strategy is set under a name that nothing reads.",
        "Requests are not routed: they pass by their model's own HTTPRoute, or get a 503.",
        _find_misspelt_algorithms,
    ),
    Check(
        "setting-unknown",
        Severity.WARNING,
        "A variable looks like a setting of the router, or is almost one, but is none.",
        "It has no effect.",
        _find_unknown_settings,
    ),
    Check(
        "termination-grace-short",
        Severity.WARNING,
        "A router's pod is killed before it has drained.",
        "Every response that is still open then breaks, at every rollout and node drain.",
        _find_short_graces,
    ),
    Check(
        "probe-missing",
        Severity.WARNING,
        "The router has no readiness or liveness probe.",
        "Envoy gets to call it before it knows any pod, or it stays when it is stuck.",
        _find_missing_probes,
    ),
    Check(
        "disruption-budget-missing",
        Severity.WARNING,
        "Several routers run without a PodDisruptionBudget.",
        "A drain of nodes may take all of them at once, and with them every open request.",
        _find_missing_budgets,
    ),
    Check(
        "limits-not-shared",
        Severity.WARNING,
        "Several routers limit users, and do not count together.",
        "Each of them lets all of a limit pass: together as many times as much.",
        _find_unshared_limits,
    ),
)
