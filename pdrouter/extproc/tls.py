"""TLS for the gRPC port, with certificates that may be replaced while the server runs."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from pdrouter.pem_files import FollowedContext, naming_files


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

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of the files."""
        named = (self.certificate, self.key, self.client_ca)
        return tuple(path for path in named if path is not None)

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Return the contents of the files.

        Raises:
            CertificatesInvalid: they cannot be used.
        """
        with naming_files(self.paths):
            self.create_context()
            return (
                self.certificate.read_bytes(),
                self.key.read_bytes(),
                None if self.client_ca is None else self.client_ca.read_bytes(),
            )

    def create_context(self) -> ssl.SSLContext:
        """Return what a connection is taken with.

        Raises:
            OSError: the files cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(self.certificate, self.key, password="")
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.client_ca)
        return context


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
        self._newest = FollowedContext(files.paths, files.create_context)
        self.context = files.create_context()
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Let a handshake go on with the newest files; those without a name come here too."""
        del name, context
        connection.context = self._newest.follow()
