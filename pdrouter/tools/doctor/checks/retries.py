"""Retries of requests: none may send a KV handle twice, and one may go to the second pod."""

from collections.abc import Iterator

from pdrouter.openai.headers import DESTINATION_ENDPOINT
from pdrouter.settings.choices import Routing
from pdrouter.tools.doctor.checks.headers import steering_header
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import BackendPolicy, PatchPolicy, RetryPolicy
from pdrouter.tools.doctor.patches import name_as_protobuf
from pdrouter.tools.doctor.retry_policies import (
    SAFE,
    describe_seen,
    describe_timeout,
    find_policies,
    judge_conditions,
)

_NAMED_PODS = 1
"""Retries that the pods which the router names are enough for."""

# What Envoy Gateway retries after where no trigger is named.
_DEFAULTS = (
    "connect-failure",
    "refused-stream",
    "unavailable",
    "cancelled",
    "retriable-status-codes",
)
_ROUTES = (".RouteConfiguration", ".Cluster", ".VirtualHost", ".Listener")


def _find_double_sends(installation: Installation) -> Iterator[Defect]:
    for ref, field, problem in _find_problems(installation):
        yield Defect(ref, field, problem, SAFE)


def _find_problems(installation: Installation) -> Iterator[tuple[ObjectRef, str, str]]:
    for attachment in installation.attachments:
        # Routed requests leave these routes for the patched ones, if there are any.
        for route in () if attachment.steered_routes else attachment.routes:
            for index, rule in enumerate(route.spec.rules):
                if rule.retry is not None and rule.retry.attempts != 0:
                    codes = ", ".join(map(str, rule.retry.codes)) or "an engine's error"
                    yield route.ref, f"spec.rules[{index}].retry", describe_seen(codes)
            for policy in installation.backend_policies(route):
                yield from _judge_backend(policy)
    for patch in installation.snapshot.of(PatchPolicy):
        yield from _judge_patches(patch)


def _judge_backend(policy: BackendPolicy) -> Iterator[tuple[ObjectRef, str, str]]:
    retry = policy.spec.retry
    if retry is None or retry.num_retries == 0:
        return
    seen = judge_conditions(retry.retry_on.triggers or _DEFAULTS)
    if retry.retry_on.http_status_codes and "retriable-status-codes" not in seen:
        seen = ", ".join(filter(None, (seen, "httpStatusCodes")))
    if seen:
        named = "triggers" if retry.retry_on.triggers else "triggers (those of Envoy Gateway)"
        yield policy.ref, f"spec.retry.retryOn.{named}", describe_seen(seen)
    if retry.per_retry.timeout is not None:
        yield policy.ref, "spec.retry.perRetry.timeout", describe_timeout(retry.per_retry.timeout)


def _judge_patches(policy: PatchPolicy) -> Iterator[tuple[ObjectRef, str, str]]:
    for index, patch in enumerate(policy.spec.json_patches):
        operation = patch.operation
        if operation.op not in {"add", "replace"} or not patch.type.endswith(_ROUTES):
            continue
        if "/http_filters/" in operation.path:
            continue
        last = operation.path.rpartition("/")[2]
        value = name_as_protobuf({last: operation.value} if last else operation.value)
        for field, problem in find_policies(value):
            inside = field.removeprefix(last).removeprefix(".") if last else field
            path = f"spec.jsonPatches[{index}].operation.value"
            yield policy.ref, f"{path}.{inside}" if inside else path, problem


def _find_retries_by_list(
    installation: Installation,
) -> Iterator[tuple[Attachment, BackendPolicy, RetryPolicy | None]]:
    """Yield the policies by which Envoy goes by the list of pods, and their retries."""
    for attachment in installation.attachments:
        for route in () if attachment.steered_routes else attachment.routes:
            for policy in installation.backend_policies(route):
                if DESTINATION_ENDPOINT in policy.spec.load_balancer.headers:
                    yield attachment, policy, policy.spec.retry


def _names_second(attachment: Attachment) -> bool | None:
    """Return whether the routers name a second pod; None where that is not known."""
    known = {
        router.settings.pod_routing for router in attachment.routers if router.knows("pod_routing")
    }
    return None if len(known) != 1 else known == {Routing.OVERRIDE_HOST}


def _find_fallbacks(installation: Installation) -> Iterator[Defect]:
    for attachment, policy, retry in _find_retries_by_list(installation):
        if retry is None or retry.num_retries == 0:
            continue
        if retry.num_retries > _NAMED_PODS:
            yield Defect(
                policy.ref,
                "spec.retry.numRetries",
                f"{retry.num_retries} tries go beyond the two pods that the router names",
                "set it to 1",
            )
        elif _names_second(attachment) is False:
            yield Defect(
                policy.ref,
                "spec.retry",
                "the router names one pod only: Envoy tries any other after it",
                f"set PDROUTER_POD_ROUTING={Routing.OVERRIDE_HOST} in the router",
            )


def _find_unused_seconds(installation: Installation) -> Iterator[Defect]:
    for attachment, policy, retry in _find_retries_by_list(installation):
        if _names_second(attachment) and (retry is None or retry.num_retries == 0):
            yield Defect(
                policy.ref,
                "spec.retry",
                "it is not set: a second pod is named, and never tried",
                "set it to {numRetries: 1, retryOn: {triggers: [connect-failure, refused-stream]}}",
            )


def _find_unread_lists(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        if not _names_second(attachment):
            continue
        for cluster in attachment.original_dst:
            if steering_header(cluster) == DESTINATION_ENDPOINT:
                yield Defect(
                    cluster.policy,
                    f"{cluster.field}.original_dst_lb_config.http_header_name",
                    "the cluster reads one address, and the router names two pods there",
                    "name target-pod, or unset PDROUTER_POD_ROUTING in the router",
                )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "handle-sent-twice",
        Severity.ERROR,
        "A retry policy sends a request again that an engine may have seen.",
        "The KV handle in the body is good for one request: to another, engines answer with "
        "garbage, or with the text of somebody else's prompt, and status 200.",
        _find_double_sends,
    ),
    Check(
        "retry-falls-back",
        Severity.WARNING,
        "Envoy tries other pods than those that the router names.",
        "Any pod of the Service will do for it: one of another model, or of another roleset, whose "
        "engine cannot fetch the blocks.",
        _find_fallbacks,
    ),
    Check(
        "second-pod-unused",
        Severity.WARNING,
        "The router names a second pod, and no retry policy goes there.",
        "A decode pod that cannot be connected to costs its request, until it is left out.",
        _find_unused_seconds,
    ),
    Check(
        "pod-list-unread",
        Severity.ERROR,
        "The router names two pods where Envoy reads one address.",
        "An address that is none is a 503 for every request.",
        _find_unread_lists,
    ),
)
