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

    def look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes when a file does: to read them takes longer than to look."""
        paths = (self.certificate, self.key, self.client_ca)
        return tuple(_look_at(path) for path in paths if path is not None)

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
    """The TLS of new connections, which follows the files when they change.

    Attributes:
        context: what a server listens with; each handshake gets what is in the files then.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            CertificatesInvalid: they cannot be used now.
        """
        self._files = files
        self._looks = files.look()
        self._contents = files.read()
        self._newest = self._create_context()
        self.context = self._create_context()
        self.context.sni_callback = self._choose

    def follow(self) -> ssl.SSLContext:
        """Return what is in the files now, or was when they were last good."""
        looks = self._files.look()
        if looks == self._looks:
            return self._newest
        self._looks = looks
        try:
            contents = self._files.read()
            if contents != self._contents:
                # A new one: certificates of clients' authorities can only be added to the old.
                self._newest = self._create_context()
                self._contents = contents
                log.info("TLS certificates were replaced")
        except (CertificatesInvalid, OSError) as error:  # Those of OpenSSL are among the latter.
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
        return self._newest

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Let a handshake go on with the newest files; those without a name come here too."""
        del name, context
        connection.context = self.follow()

    def _create_context(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(files.certificate, files.key, password="")
        if files.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(files.client_ca)
        return context


def _look_at(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
