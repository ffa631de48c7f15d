"""How Envoy reaches the routers: what it does when one is gone, and whether TLS fits."""

from collections.abc import Iterator

from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.gateway_api import BackendTlsPolicy
from pdrouter.tools.doctor.objects.workloads import Service

_TRIGGER = "connect-failure"
_H2 = frozenset({"h2", "http/2"})


def _find_missing_retries(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        retry = attachment.ext_proc.backend_settings.retry
        if retry is None:
            problem = "it is not set"
        elif retry.num_retries < 1:
            problem = "numRetries is 0"
        elif retry.retry_on.triggers and _TRIGGER not in retry.retry_on.triggers:
            problem = f"retryOn.triggers has no {_TRIGGER}"
        else:
            continue
        yield Defect(
            attachment.policy.ref,
            attachment.field("backendSettings.retry"),
            problem,
            "set it to {numRetries: 5, retryOn: {triggers: [connect-failure, refused-stream]}}",
        )


def _find_missing_alpn(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        active = attachment.ext_proc.backend_settings.health_check.active
        if active is None or active.type != "GRPC" or not _find_tls(installation, attachment):
            continue
        for gateway in installation.gateways(attachment):
            proxies = installation.proxies(gateway)
            offered = {
                name.lower() for proxy in proxies for name in proxy.spec.backend_tls.alpn_protocols
            }
            if not offered & _H2:
                field = "spec.backendTLS.alpnProtocols"
                yield Defect(
                    proxies[0].ref if proxies else gateway.ref,
                    field if proxies else f"EnvoyProxy {field}",
                    f"it is {', '.join(sorted(offered))}" if offered else "it is not set",
                    "set it to [h2]",
                )


def _find_tls_mismatches(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        policies = _find_tls(installation, attachment)
        for router in attachment.routers:
            home = router.deployment.metadata.namespace
            if not router.knows("tls_certificate") or not installation.snapshot.has_read(
                BackendTlsPolicy, home
            ):
                continue
            speaks = router.settings.tls_certificate is not None
            if speaks and not policies:
                yield Defect(
                    attachment.policy.ref,
                    attachment.field("backendRefs"),
                    f"{router.deployment.ref} speaks TLS, and no BackendTLSPolicy has its Service",
                    "add a BackendTLSPolicy for the Service, or unset PDROUTER_TLS_CERTIFICATE",
                )
            if policies and not speaks:
                yield Defect(
                    policies[0],
                    "spec.targetRefs",
                    f"{router.deployment.ref} behind it has no PDROUTER_TLS_CERTIFICATE",
                    "set PDROUTER_TLS_CERTIFICATE and PDROUTER_TLS_KEY, or remove the policy",
                )


def _find_tls(installation: Installation, attachment: Attachment) -> list[ObjectRef]:
    """Return the BackendTLSPolicies of the Services through which Envoy calls the router."""
    home = attachment.policy.metadata.namespace
    services = {
        ObjectRef(Service.__name__, backend.namespace or home, backend.name)
        for backend in attachment.ext_proc.backend_refs
    }
    return [
        policy.ref
        for policy in installation.snapshot.of(BackendTlsPolicy)
        for target in policy.spec.target_refs
        if ObjectRef(target.kind, policy.metadata.namespace, target.name) in services
    ]


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "router-retry-missing",
        Severity.WARNING,
        "Envoy does not try another router when one cannot be reached.",
        "Health checks find a router that has died after seconds only: until then, its share of "
        "the requests, half of them with two routers, gets a 500.",
        _find_missing_retries,
    ),
    Check(
        "router-alpn-missing",
        Severity.WARNING,
        "Envoy's health checks of the router over TLS offer no HTTP/2.",
        "The router's own server takes such connections, but gRPC's (`PDROUTER_TRANSPORT=grpcio`) "
        "drops them: every check fails, and where all routers look dead Envoy uses all, those that "
        "are dead or draining too.",
        _find_missing_alpn,
    ),
    Check(
        "router-tls-mismatch",
        Severity.ERROR,
        "Only one of Envoy and the router speaks TLS.",
        "No call reaches the router: every request gets a 500.",
        _find_tls_mismatches,
    ),
)
