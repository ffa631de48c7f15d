"""TLS for the gRPC port, with certificates that may be replaced while the server runs."""

import logging
import ssl
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
            CertificatesInvalid: a file cannot be read, is not PEM, or the key is of another
                certificate, as it is for a moment while the files are replaced one by one.
        """
        client_ca = self.client_ca
        try:
            contents = (
                self.certificate.read_bytes(),
                self.key.read_bytes(),
                None if client_ca is None else client_ca.read_bytes(),
            )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(self.certificate, self.key, password="")
            if client_ca is not None:
                context.load_verify_locations(client_ca)
        except OSError as error:  # Those of OpenSSL are among them.
            names = ", ".join(str(path) for path in (self.certificate, self.key, client_ca) if path)
            raise CertificatesInvalid(f"TLS files {names}: {error}") from error
        return contents


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
