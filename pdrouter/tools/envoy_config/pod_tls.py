"""TLS between Envoy and the pods."""

from dataclasses import dataclass
from pathlib import Path

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.settings import Settings
from pdrouter.settings.choices import EngineEncryption

SYSTEM_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
"""Whom Envoy's image trusts, as most distributions have it: Envoy does not look for it."""


@dataclass(frozen=True, slots=True)
class PodTls:
    """How Envoy speaks to the pods; files are named as Envoy sees the file system.

    Attributes:
        verified: Whether their certificates are checked.
        ca_file: PEM file of who signs these; None for `SYSTEM_CA_FILE`.
        server_name: The name in the certificates of all pods: Envoy knows only the address of
            the pod that was chosen, and checks no certificate against it.
        certificate_file: Envoy's own certificate chain, for engines that want one; None for none.
        key_file: Its private key.

    Raises:
        ValueError: If the decisions contradict each other.
    """

    verified: bool = True
    ca_file: str | None = None
    server_name: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None

    def __post_init__(self) -> None:
        if self.verified and self.server_name is None:
            raise ValueError("TLS to the pods needs the name that their certificates have")
        if not self.verified and (self.ca_file or self.server_name):
            raise ValueError("insecure TLS to the pods checks neither an authority nor a name")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("a client certificate for the pods and its key need each other")


def choose_pod_tls(settings: Settings) -> PodTls | None:
    """Returns how the router's settings would have Envoy speak to the pods; None for plain text.

    Raises:
        ValueError: If Envoy cannot do as they say.
    """
    if settings.engine_tls is EngineEncryption.OFF:
        return None
    return PodTls(
        verified=settings.engine_tls is EngineEncryption.ON,
        ca_file=name_file(settings.engine_ca),
        server_name=settings.engine_server_name,
        certificate_file=name_file(settings.engine_client_certificate),
        key_file=name_file(settings.engine_client_key),
    )


def name_file(path: Path | None) -> str | None:
    """Writes a path as Envoy's configuration has it."""
    return None if path is None else str(path)


def build_pod_tls(pod_tls: PodTls) -> core.TransportSocket:
    """Builds what encrypts the connections to the pods."""
    context = tls.UpstreamTlsContext(
        sni=pod_tls.server_name or "",
        common_tls_context=tls.CommonTlsContext(
            alpn_protocols=["http/1.1"],
            tls_certificates=_certificates(pod_tls),
            validation_context=_validation(pod_tls) if pod_tls.verified else None,
        ),
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _certificates(pod_tls: PodTls) -> list[tls.TlsCertificate]:
    if pod_tls.certificate_file is None:
        return []
    return [
        tls.TlsCertificate(
            certificate_chain=core.DataSource(filename=pod_tls.certificate_file),
            private_key=core.DataSource(filename=pod_tls.key_file),
        )
    ]


def _validation(pod_tls: PodTls) -> tls.CertificateValidationContext:
    return tls.CertificateValidationContext(
        trusted_ca=core.DataSource(filename=pod_tls.ca_file or SYSTEM_CA_FILE),
        match_typed_subject_alt_names=[
            tls.SubjectAltNameMatcher(
                san_type=tls.SubjectAltNameMatcherSanType.DNS,
                matcher=matcher.StringMatcher(exact=pod_tls.server_name),
            )
        ],
    )
