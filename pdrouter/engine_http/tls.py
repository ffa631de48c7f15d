"""TLS to engines: whom the router trusts, and who it says it is."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from pdrouter.pem_files import FollowedContext


@dataclass(frozen=True, slots=True)
class EngineTlsRules:
    """How engines are spoken to.

    Attributes:
        verified: whether their certificates are checked.
        authorities: PEM file of who signs these; None for those that the system trusts.
        name: the name in the certificates of all engines; None for each one's own address.
        certificate: the router's own certificate chain, for engines that want one; None for none.
        key: its private key.
    """

    verified: bool = True
    authorities: Path | None = None
    name: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of the files."""
        named = (self.authorities, self.certificate, self.key)
        return tuple(path for path in named if path is not None)

    def create_context(self) -> ssl.SSLContext:
        """Return what a connection is opened with.

        Raises:
            OSError: the files cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["http/1.1"])
        if not self.verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.authorities is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(self.authorities)
        if self.certificate is not None:
            # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(self.certificate, self.key, password="")
        return context


class EngineTls:
    """The TLS of new connections to engines, which follows the files when they change."""

    def __init__(self, rules: EngineTlsRules) -> None:
        """Read the files.

        Raises:
            CertificatesInvalid: they cannot be used now.
        """
        self._name = rules.name
        self._newest = FollowedContext(rules.paths, rules.create_context)

    def open(self, host: str) -> tuple[ssl.SSLContext, str]:
        """Return what a connection to an engine is opened with, and the name that is expected."""
        return self._newest.follow(), self._name or host


def describe_failure(error: OSError) -> str:
    """Say in a few words why there is no connection, or none any more."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST"):
            return "it does not speak TLS (PDROUTER_ENGINE_TLS)"
        case ssl.SSLError() if error.reason and "ALERT" in error.reason:
            alert = error.reason.partition("ALERT_")[2] or error.reason
            return f"it refuses TLS as it is spoken: {alert.lower().replace('_', ' ')}"
        case ssl.SSLError():
            return f"TLS fails: {error.reason or error}"
    # The loop's own text names the address once more.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
