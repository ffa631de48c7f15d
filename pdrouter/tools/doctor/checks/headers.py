"""Headers that steer requests: a client's must go early, the router's must stay."""

from collections.abc import Iterator

from pdrouter.openai.headers import CONTROL_HEADERS, EARLY_HEADERS
from pdrouter.tools.doctor.checks.patterns import may_match
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import EarlyHeaders, NameMatch
from pdrouter.tools.doctor.objects.gateway_api import Gateway
from pdrouter.tools.doctor.patches import Patched, dig

_ENVOY_DEFAULT = "x-envoy-original-dst-host"


def steering_header(cluster: Patched) -> str:
    """Return the header by which an ORIGINAL_DST cluster is steered; nothing if by none."""
    config = dig(cluster.content, "original_dst_lb_config")
    if dig(config, "use_http_header") is not True:
        return ""
    return str(dig(config, "http_header_name") or _ENVOY_DEFAULT).lower()


def _find_kept_steering(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        wanted = _steering(attachment)
        for gateway in installation.gateways(attachment):
            yield from _judge_removal(installation, gateway, wanted)


def _find_kept_headers(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        wanted = [name for name in EARLY_HEADERS if name not in _steering(attachment)]
        for gateway in installation.gateways(attachment):
            yield from _judge_removal(installation, gateway, wanted)


def _steering(attachment: Attachment) -> list[str]:
    names = {steering_header(cluster) for cluster in attachment.original_dst}
    return sorted(names - {""})


def _judge_removal(
    installation: Installation, gateway: Gateway, wanted: list[str]
) -> Iterator[Defect]:
    policies = installation.client_policies(gateway)
    kept = [name for name in wanted if not removes_early(installation, gateway, name)]
    if kept:
        field = "spec.headers.earlyRequestHeaders.remove"
        names = ", ".join(kept)
        yield Defect(
            policies[0].ref if policies else gateway.ref,
            field if policies else f"ClientTrafficPolicy {field}",
            f"a client's {names} {'is' if len(kept) == 1 else 'are'} not removed",
            f"add {names}",
        )


def removes_early(installation: Installation, gateway: Gateway, name: str) -> bool:
    """Return whether a Gateway removes a client's header before it looks for a route."""
    return any(
        _removes(policy.spec.headers.early_request_headers, name.lower())
        for policy in installation.client_policies(gateway)
    )


def _removes(headers: EarlyHeaders, name: str) -> bool:
    return name in {removed.lower() for removed in headers.remove} or any(
        _matches(pattern, name) for pattern in headers.remove_on_match
    )


def _matches(pattern: NameMatch, name: str) -> bool:
    value = pattern.value.lower()
    match pattern.type:
        case "Prefix":
            return name.startswith(value)
        case "Suffix":
            return name.endswith(value)
        case "RegularExpression":
            return may_match(value, name)
        case _:
            return name == value


def _find_changed_headers(installation: Installation) -> Iterator[Defect]:
    for ref, field, names in _changed_headers(installation):
        changed = sorted(names & set(CONTROL_HEADERS))
        if changed:
            yield Defect(
                ref,
                field,
                f"it changes {', '.join(changed)}",
                "remove it: earlyRequestHeaders.remove of a ClientTrafficPolicy is the place",
            )


def _changed_headers(installation: Installation) -> Iterator[tuple[ObjectRef, str, set[str]]]:
    for attachment in installation.attachments:
        for route in attachment.routes:
            for index, rule in enumerate(route.spec.rules):
                filters = [(f"filters[{number}]", each) for number, each in enumerate(rule.filters)]
                for place, backend in enumerate(rule.backend_refs):
                    filters += [
                        (f"backendRefs[{place}].filters[{number}]", each)
                        for number, each in enumerate(backend.filters)
                    ]
                for path, each in filters:
                    if each.request_header_modifier is not None:
                        field = f"spec.rules[{index}].{path}.requestHeaderModifier"
                        yield route.ref, field, each.request_header_modifier.names
        for patched in attachment.patched_routes:
            removed = dig(patched.content, "request_headers_to_remove")
            if isinstance(removed, list):
                names = {str(name).lower() for name in removed}
                yield patched.policy, f"{patched.field}.request_headers_to_remove", names


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "steering-header-kept",
        Severity.ERROR,
        "A client's own header reaches a cluster that connects to the address in it.",
        "Whenever a request passes the router by, the client chooses the address, any that Envoy "
        "reaches: metadata services, other tenants, Envoy's own admin port.",
        _find_kept_steering,
    ),
    Check(
        "control-headers-kept",
        Severity.WARNING,
        "Clients' control headers are not removed before the filters run.",
        "The router removes them too; this is the second lock, for requests that pass it by.",
        _find_kept_headers,
    ),
    Check(
        "control-header-changed",
        Severity.ERROR,
        "A route changes headers by which the router names the chosen pod.",
        "Envoy applies a route's changes after the router and before it picks the host: the "
        "router's choice is lost.",
        _find_changed_headers,
    ),
)
