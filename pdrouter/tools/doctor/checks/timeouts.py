"""Time limits that end a prefill or a stream before its time."""

from collections.abc import Iterator
from contextlib import suppress

from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation, find_patched_ext_procs
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import PatchPolicy
from pdrouter.tools.doctor.objects.gateway_api import HttpRoute
from pdrouter.tools.doctor.patches import find_values
from pdrouter.tools.doctor.quantities import Seconds

_ENVOY_MESSAGE_S = 0.2
_ENVOY_ROUTE_S = 15
_ENVOY_STREAM_IDLE_S = 300
_LONG_ANSWER_S = 3600
"""65,536 tokens at 20 per second take less than an hour: a longer limit cuts nothing."""

_NO_LIMIT = "set it to 0s: the stream idle timeout ends what hangs"


def _find_missing_message_timeouts(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        if attachment.ext_proc.message_timeout is None:
            yield Defect(
                attachment.policy.ref,
                attachment.field("messageTimeout"),
                f"it is not set: Envoy waits for {_ENVOY_MESSAGE_S:g}s",
                _advise_message_timeout(attachment.prefill_timeout_s),
            )
    for filter_ in find_patched_ext_procs(installation.snapshot):
        if filter_.seconds("message_timeout") is None:
            yield Defect(
                filter_.policy,
                f"{filter_.field}.message_timeout",
                f"it is not set: Envoy waits for {_ENVOY_MESSAGE_S:g}s",
                _advise_message_timeout(_longest_prefill_s(installation)),
            )


def _find_short_message_timeouts(installation: Installation) -> Iterator[Defect]:
    for ref, field, limit, prefill_s in _message_timeouts(installation):
        if limit < prefill_s:
            yield Defect(
                ref,
                field,
                f"{limit} is less than the prefill may take, {prefill_s:g}s",
                _advise_message_timeout(prefill_s),
            )


def _find_tight_message_timeouts(installation: Installation) -> Iterator[Defect]:
    for ref, field, limit, prefill_s in _message_timeouts(installation):
        if limit == prefill_s:
            yield Defect(
                ref,
                field,
                f"{limit} is exactly what the prefill may take",
                "make it a few seconds longer, or AIBRIX_PREFILL_REQUEST_TIMEOUT shorter",
            )


def _find_useless_maxima(installation: Installation) -> Iterator[Defect]:
    prefill_s = _longest_prefill_s(installation)
    for filter_ in find_patched_ext_procs(installation.snapshot):
        limit = filter_.seconds("message_timeout") or Seconds(_ENVOY_MESSAGE_S)
        longest = filter_.seconds("max_message_timeout")
        if longest is not None and prefill_s is not None and limit < prefill_s:
            yield Defect(
                filter_.policy,
                f"{filter_.field}.max_message_timeout",
                f"{longest} does not make message_timeout ({limit}) longer",
                "set message_timeout, and remove it",
            )


def _find_short_idle_timeouts(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        prefill_s = attachment.prefill_timeout_s
        if prefill_s is None:
            continue
        for ref, field, limit in _idle_timeouts(installation, attachment):
            effective = _ENVOY_STREAM_IDLE_S if limit is None else limit
            if 0 < effective <= prefill_s:
                shown = f"it is not set: {effective}s" if limit is None else f"{limit}"
                yield Defect(
                    ref,
                    field,
                    f"{shown} without a byte end a request; a prefill may take {prefill_s:g}s",
                    f"set it to {prefill_s + _ENVOY_STREAM_IDLE_S:g}s: the prefill, then a silent "
                    "engine",
                )


def _find_default_route_timeouts(installation: Installation) -> Iterator[Defect]:
    for ref, field, limit in _response_limits(installation):
        if limit is None:
            yield Defect(
                ref,
                field,
                f"it is not set: Envoy ends every response after {_ENVOY_ROUTE_S}s",
                _NO_LIMIT,
            )


def _find_response_limits(installation: Installation) -> Iterator[Defect]:
    for ref, field, limit in _response_limits(installation):
        if limit is not None and 0 < limit < _LONG_ANSWER_S:
            yield Defect(ref, field, f"a response that takes longer than {limit} is cut", _NO_LIMIT)


def _longest_prefill_s(installation: Installation) -> float | None:
    return max(
        (router.prefill_timeout_s for router in installation.routers if router.prefill_timeout_s),
        default=None,
    )


def _advise_message_timeout(prefill_s: float | None) -> str:
    if prefill_s is None:
        return "set it longer than AIBRIX_PREFILL_REQUEST_TIMEOUT"
    return f"set it to {prefill_s + 10:g}s, longer than AIBRIX_PREFILL_REQUEST_TIMEOUT"


def _message_timeouts(
    installation: Installation,
) -> Iterator[tuple[ObjectRef, str, Seconds, float]]:
    """Yield the limits that are set, each with the deadline of the prefill if that is known."""
    for attachment in installation.attachments:
        limit = attachment.ext_proc.message_timeout
        prefill_s = attachment.prefill_timeout_s
        if limit is not None and prefill_s is not None:
            yield attachment.policy.ref, attachment.field("messageTimeout"), limit, prefill_s
    longest = _longest_prefill_s(installation)
    for filter_ in find_patched_ext_procs(installation.snapshot):
        limit = filter_.seconds("message_timeout")
        if limit is not None and longest is not None:
            yield filter_.policy, f"{filter_.field}.message_timeout", limit, longest


def _idle_timeouts(
    installation: Installation, attachment: Attachment
) -> Iterator[tuple[ObjectRef, str, Seconds | None]]:
    """Yield the stream idle timeout of each Gateway, and what routes say instead."""
    patched = list(_patched_idle_timeouts(installation))
    yield from patched
    for gateway in () if patched else installation.gateways(attachment):
        policies = installation.client_policies(gateway)
        for client_policy in policies:
            limit = client_policy.spec.timeout.http.stream_idle_timeout
            yield client_policy.ref, "spec.timeout.http.streamIdleTimeout", limit
        if not policies:
            yield gateway.ref, "ClientTrafficPolicy spec.timeout.http.streamIdleTimeout", None
    for route in attachment.routes:
        for policy in installation.backend_policies(route):
            limit = policy.spec.timeout.http.stream_idle_timeout
            if limit is not None:
                yield policy.ref, "spec.timeout.http.streamIdleTimeout", limit


def _patched_idle_timeouts(
    installation: Installation,
) -> Iterator[tuple[ObjectRef, str, Seconds]]:
    """Yield what patches set; a value that is no duration makes Envoy Gateway refuse them."""
    for policy in installation.snapshot.of(PatchPolicy):
        for field, _, value in find_values(policy, "stream_idle_timeout"):
            with suppress(ValueError):
                yield policy.ref, field, Seconds.parse(value)


def _response_limits(
    installation: Installation,
) -> Iterator[tuple[ObjectRef, str, Seconds | None]]:
    """Yield the limits on whole responses of the routes that decode legs take.

    Idle timeouts of connections and their greatest age are none: Envoy lets open streams end.
    """
    for attachment in installation.attachments:
        for route in attachment.steered_routes:
            limit = route.seconds("route", "timeout")
            yield route.policy, f"{route.field}.route.timeout", limit
        routes = [] if attachment.steered_routes else list(attachment.routes)
        if attachment.routes_by_model:
            routes += installation.model_routes(attachment)
        for http_route in routes:
            yield from _route_limits(installation, http_route)
        for gateway in installation.gateways(attachment):
            for policy in installation.client_policies(gateway):
                limit = policy.spec.connection.connection_limit.max_stream_duration
                if limit is not None:
                    yield policy.ref, "spec.connection.connectionLimit.maxStreamDuration", limit


def _route_limits(
    installation: Installation, route: HttpRoute
) -> Iterator[tuple[ObjectRef, str, Seconds | None]]:
    by_policy: list[tuple[ObjectRef, str, Seconds]] = []
    whole = False
    for policy in installation.backend_policies(route):
        http = policy.spec.timeout.http
        whole = whole or http.request_timeout is not None
        for name, limit in (
            ("requestTimeout", http.request_timeout),
            ("maxStreamDuration", http.max_stream_duration),
        ):
            if limit is not None:
                by_policy.append((policy.ref, f"spec.timeout.http.{name}", limit))
    yield from by_policy
    for index, rule in enumerate(route.spec.rules):
        field = f"spec.rules[{index}].timeouts"
        if rule.timeouts.request is not None or not whole:
            yield route.ref, f"{field}.request", rule.timeouts.request
        if rule.timeouts.backend_request is not None:
            yield route.ref, f"{field}.backendRequest", rule.timeouts.backend_request


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "message-timeout-missing",
        Severity.ERROR,
        "The time that Envoy waits for the router is Envoy's default of 200 ms.",
        "The router runs the prefill leg while Envoy waits for its answer to the body: every "
        "prompt that takes longer gets a 504.",
        _find_missing_message_timeouts,
    ),
    Check(
        "message-timeout-short",
        Severity.ERROR,
        "Envoy waits for the router less long than a prefill may take.",
        "Envoy gives up first: the client gets a bare 504 and the prefill is thrown away.",
        _find_short_message_timeouts,
    ),
    Check(
        "message-timeout-tight",
        Severity.WARNING,
        "Envoy waits for the router exactly as long as a prefill may take.",
        "Which of the two gives up first is chance: at times the client gets Envoy's bare 504 "
        "instead of the router's error, which says what happened.",
        _find_tight_message_timeouts,
    ),
    Check(
        "max-message-timeout-useless",
        Severity.WARNING,
        "A patched ext_proc filter relies on `max_message_timeout`.",
        "It only bounds what the server asks for by `override_message_timeout`, which the router "
        "does not send.",
        _find_useless_maxima,
    ),
    Check(
        "stream-idle-timeout-short",
        Severity.WARNING,
        "A stream may be idle less long than a prefill may take.",
        "No byte flows to the client while the prefill runs, so Envoy ends the request before the "
        "prefill's own deadline.",
        _find_short_idle_timeouts,
    ),
    Check(
        "route-timeout-default",
        Severity.ERROR,
        "A route has no limit on the whole response, so Envoy's 15 s hold.",
        "Every answer that takes longer is cut off in the middle of its stream.",
        _find_default_route_timeouts,
    ),
    Check(
        "response-limit",
        Severity.WARNING,
        "A limit below an hour holds for the whole response.",
        "A stream is cut although tokens flow: the time is that of the whole answer.",
        _find_response_limits,
    ),
)
