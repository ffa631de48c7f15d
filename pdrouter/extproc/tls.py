"""TLS for the gRPC port, with certificates that may be replaced while the server runs."""

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)


class CertificatesInvalid(Exception):
    """The files for TLS cannot be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for the server's side of TLS.

    Attributes:
        certificate: certificate chain of the server.
        key: private key of the certificate.
        client_ca: certificates that sign those of clients; None to let any client in.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Return the contents of the files.

        Raises:
            CertificatesInvalid: a file cannot be read, or is not PEM.
        """
        paths = (self.certificate, self.key, self.client_ca)
        contents: list[bytes | None] = []
        for path in paths:
            try:
                content = None if path is None else path.read_bytes()
            except OSError as error:
                raise CertificatesInvalid(f"{path}: {error.strerror}") from error
            if content is not None and b"-----BEGIN" not in content:
                raise CertificatesInvalid(f"{path} is not a PEM file")
            contents.append(content)
        certificate, key, client_ca = contents
        return certificate or b"", key or b"", client_ca


def create_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow the files: each new connection gets what is in them then.

    Raises:
        CertificatesInvalid: the files cannot be used now. Later, files that cannot be used leave
            the last good ones in use.
    """
    current = files.read()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current
        try:
            newest = files.read()
        except CertificatesInvalid as error:
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
            return None
        if newest == current:
            return None
        current = newest
        log.info("TLS certificates were replaced")
        return _configure(newest)

    return grpc.dynamic_ssl_server_credentials(
        _configure(current), fetch, require_client_authentication=files.client_ca is not None
    )


def _configure(contents: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    certificate, key, client_ca = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)
