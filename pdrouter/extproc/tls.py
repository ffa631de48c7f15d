"""TLS for the gRPC port, with certificates that may be replaced while the server runs."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

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


class FollowedTls:
    """The TLS of new connections, which follows the files when they change."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            CertificatesInvalid: they cannot be used now.
        """
        self._files = files
        self._current = files.read()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        if files.client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._load()

    def follow(self) -> ssl.SSLContext:
        """Return the context, with what is in the files now, or was when they were last good."""
        try:
            newest = self._files.read()
        except CertificatesInvalid as error:
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
            return self._context
        if newest != self._current:
            self._current = newest
            self._load()
            log.info("TLS certificates were replaced")
        return self._context

    def _load(self) -> None:
        files = self._files
        self._context.load_cert_chain(files.certificate, files.key, password="")
        if files.client_ca is not None:
            self._context.load_verify_locations(files.client_ca)
