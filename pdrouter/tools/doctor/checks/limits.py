"""Sizes and counts beyond which Envoy refuses requests."""

from collections.abc import Iterable, Iterator

from pdrouter.extproc.header_limits import ENVOYS_DEFAULTS
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import CircuitBreaker, ClientPolicy, PatchPolicy
from pdrouter.tools.doctor.patches import dig, find_values
from pdrouter.tools.doctor.quantities import Size

_DEFAULT_COUNT = 1024
_HEADROOM_BYTES = 1024 * 1024
"""What may be kept free in a message for headers and the KV handle."""


def _find_default_buffers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        for gateway in installation.gateways(attachment):
            policies = installation.client_policies(gateway)
            if any(policy.spec.connection.buffer_limit for policy in policies):
                continue
            ref, field = gateway.ref, "ClientTrafficPolicy spec.connection.bufferLimit"
            if policies:
                ref, field = policies[0].ref, "spec.connection.bufferLimit"
            yield Defect(
                ref, field, "it is not set: 32 KiB", _advise_buffer(attachment.max_message_bytes)
            )


def _find_excessive_buffers(installation: Installation) -> Iterator[Defect]:
    for policy, field, limit, largest in _buffers(installation):
        if limit > largest:
            yield Defect(
                policy.ref,
                field,
                f"{limit} is more than the router takes in one message, {largest}",
                f"lower it to {Size(largest - 64 * 1024)} (headers need some room), or raise "
                "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES",
            )


def _find_small_buffers(installation: Installation) -> Iterator[Defect]:
    for policy, field, limit, largest in _buffers(installation):
        if limit < largest - _HEADROOM_BYTES:
            yield Defect(
                policy.ref,
                field,
                f"{limit} is less than the router takes in one message, {largest}",
                f"raise it to {Size(largest - 64 * 1024)}, or lower "
                "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES if the limit is meant",
            )


def _find_default_windows(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        for gateway in installation.gateways(attachment):
            for policy in installation.client_policies(gateway):
                limit = policy.spec.connection.buffer_limit
                if limit is not None and policy.spec.http2.initial_stream_window_size is None:
                    yield Defect(
                        policy.ref,
                        "spec.http2.initialStreamWindowSize",
                        "it is not set: HTTP/2 requests have 64 KiB",
                        f"set it to {limit}, the bufferLimit of the same policy",
                    )


def _find_default_ext_proc_buffers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        if attachment.ext_proc.backend_settings.connection.buffer_limit is None:
            yield Defect(
                attachment.policy.ref,
                attachment.field("backendSettings.connection.bufferLimit"),
                "it is not set: 32 KiB",
                _advise_buffer(attachment.max_message_bytes),
            )


def _find_ext_proc_breakers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        breaker = attachment.ext_proc.backend_settings.circuit_breaker
        # Not connections: HTTP/2 has a thousand streams on each.
        limits = {
            "maxParallelRequests": breaker.max_parallel_requests,
            "maxPendingRequests": breaker.max_pending_requests,
        }
        field = attachment.field("backendSettings.circuitBreaker")
        yield from _judge_breaker(attachment.policy.ref, field, limits)


def _find_model_breakers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        for cluster in attachment.original_dst:
            field = f"{cluster.field}.circuit_breakers.thresholds"
            limits = _read_thresholds(dig(cluster.content, "circuit_breakers", "thresholds"))
            yield from _judge_breaker(cluster.policy, field, limits)
        if not attachment.steered_routes:
            yield from _find_route_breakers(installation, attachment)


def _find_route_breakers(installation: Installation, attachment: Attachment) -> Iterator[Defect]:
    for route in attachment.routes:
        policies = installation.backend_policies(route)
        breakers = [policy.spec.circuit_breaker for policy in policies] or [CircuitBreaker()]
        # Of several policies that are merged, one sets a limit and the others have its default.
        limits = {
            "maxConnections": max(each.max_connections for each in breakers),
            "maxParallelRequests": max(each.max_parallel_requests for each in breakers),
            "maxPendingRequests": max(each.max_pending_requests for each in breakers),
        }
        if policies:
            yield from _judge_breaker(policies[0].ref, "spec.circuitBreaker", limits)
        else:
            field = "BackendTrafficPolicy spec.circuitBreaker"
            yield from _judge_breaker(route.ref, field, limits)


def _find_small_header_limits(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        routers = attachment.routers
        counts = [each.settings.max_headers for each in routers if each.knows("max_headers")]
        sizes = [
            each.settings.max_header_bytes for each in routers if each.knows("max_header_bytes")
        ]
        yield from _judge_header_count(
            installation, attachment, max(counts, default=ENVOYS_DEFAULTS.count)
        )
        yield from _judge_header_size(
            installation, attachment, Size(max(sizes, default=ENVOYS_DEFAULTS.size))
        )


def _judge_header_count(
    installation: Installation, attachment: Attachment, wanted: int
) -> Iterator[Defect]:
    patched = list(_find_patched_numbers(installation, "max_headers_count"))
    for ref, field, allowed in patched:
        if allowed < wanted:
            yield Defect(
                ref,
                field,
                f"Envoy allows {allowed} headers, the router {wanted}",
                f"set it to {wanted}, or PDROUTER_MAX_HEADERS to {allowed}",
            )
    if not patched and wanted > ENVOYS_DEFAULTS.count:
        yield Defect(
            attachment.routers[0].deployment.ref,
            attachment.routers[0].field("env[PDROUTER_MAX_HEADERS]"),
            f"the router allows {wanted} headers, Envoy {ENVOYS_DEFAULTS.count}, its default",
            "let an EnvoyPatchPolicy set max_headers_count of the listener "
            "(deploy/components/listener-patch), or unset PDROUTER_MAX_HEADERS",
        )


def _judge_header_size(
    installation: Installation, attachment: Attachment, wanted: Size
) -> Iterator[Defect]:
    field = "spec.headers.maxRequestHeaderLimit"
    patched = list(_find_patched_numbers(installation, "max_request_headers_kb"))
    said = [(ref, place, Size(number * 1024)) for ref, place, number in patched]
    for gateway in installation.gateways(attachment):
        for policy in installation.client_policies(gateway):
            limit = policy.spec.headers.max_request_header_limit
            # Patches come last: what they say holds.
            if limit is not None and not patched:
                said.append((policy.ref, field, limit))
        if not said:
            default = Size(ENVOYS_DEFAULTS.size)
            said.append((gateway.ref, f"ClientTrafficPolicy {field}", default))
    for ref, place, allowed in dict.fromkeys(said):
        if allowed < wanted:
            yield Defect(
                ref,
                place,
                f"Envoy allows {allowed} of headers, the router {wanted}",
                f"set it to {wanted}, or PDROUTER_MAX_HEADER_BYTES to {allowed}",
            )


def _find_patched_numbers(
    installation: Installation, name: str
) -> Iterator[tuple[ObjectRef, str, int]]:
    """Yield the numbers that patches set members of a name to, and where they stand."""
    for policy in installation.snapshot.of(PatchPolicy):
        for field, _, value in find_values(policy, name):
            if isinstance(value, int):
                yield policy.ref, field, value


def _judge_breaker(ref: ObjectRef, field: str, limits: dict[str, int]) -> Iterator[Defect]:
    low = [name for name, limit in limits.items() if limit <= _DEFAULT_COUNT]
    if low:
        yield Defect(
            ref,
            field,
            ", ".join(f"{name} is {limits[name]}" for name in low)
            + f" ({_DEFAULT_COUNT} is the default)",
            "set " + ", ".join(low) + " above the number of requests that may be open, say 10000",
        )


def _read_thresholds(thresholds: object) -> dict[str, int]:
    """Return the limits of a cluster for requests of default priority."""
    names = ("max_connections", "max_pending_requests", "max_requests")
    limits = dict.fromkeys(names, _DEFAULT_COUNT)
    for threshold in thresholds if isinstance(thresholds, list) else []:
        if dig(threshold, "priority") in (None, "DEFAULT"):
            set_here = {name: dig(threshold, name) for name in names}
            limits |= {name: limit for name, limit in set_here.items() if isinstance(limit, int)}
    return limits


def _buffers(installation: Installation) -> Iterable[tuple[ClientPolicy, str, Size, Size]]:
    """Yield the limits that are set, each with the largest message that the router takes."""
    for attachment in installation.attachments:
        largest = attachment.max_message_bytes
        for gateway in installation.gateways(attachment):
            for policy in installation.client_policies(gateway):
                limit = policy.spec.connection.buffer_limit
                if limit is not None and largest is not None:
                    yield policy, "spec.connection.bufferLimit", limit, Size(largest)


def _advise_buffer(largest: int | None) -> str:
    if largest is None:
        return "set it a little below AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES"
    return f"set it to {Size(largest - 64 * 1024)}: the router takes messages of {Size(largest)}"


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "client-buffer-default",
        Severity.ERROR,
        "Envoy buffers request bodies up to 32 KiB only.",
        "A longer prompt gets a 413 before the router sees it.",
        _find_default_buffers,
    ),
    Check(
        "client-buffer-excessive",
        Severity.ERROR,
        "Envoy buffers larger bodies than the router takes.",
        "The gRPC call fails and the client gets a 500 instead of a 413.",
        _find_excessive_buffers,
    ),
    Check(
        "client-buffer-small",
        Severity.WARNING,
        "Envoy refuses bodies that the router would take.",
        "A long prompt gets Envoy's bare 413.",
        _find_small_buffers,
    ),
    Check(
        "http2-window-default",
        Severity.WARNING,
        "HTTP/2 clients have a buffer of 64 KiB.",
        "Envoy takes the stream's window, not bufferLimit, for the largest body of an HTTP/2 "
        "request: a longer prompt gets a 413.",
        _find_default_windows,
    ),
    Check(
        "header-limit-low",
        Severity.WARNING,
        "Envoy takes fewer or shorter headers than the router.",
        "Envoy refuses what the router adds beyond its own limit, after prefill has run and with "
        "an error that says nothing.",
        _find_small_header_limits,
    ),
    Check(
        "ext-proc-buffer-default",
        Severity.WARNING,
        "Connections to the router have a buffer of 32 KiB.",
        "Bodies go to the router in many small steps.",
        _find_default_ext_proc_buffers,
    ),
    Check(
        "ext-proc-circuit-breaker",
        Severity.WARNING,
        "At most about a thousand requests can be with the router.",
        "A stream to the router stays open for as long as the response lasts: with 1,024 responses "
        "in progress every further request fails at once.",
        _find_ext_proc_breakers,
    ),
    Check(
        "model-circuit-breaker",
        Severity.WARNING,
        "At most about a thousand requests can be with the engines.",
        "Each response holds a connection for as long as it lasts: the next request gets a 503 at "
        "once, and retries keep it so.",
        _find_model_breakers,
    ),
)
