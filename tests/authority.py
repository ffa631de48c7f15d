"""A certificate authority for tests, made with the openssl command."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def copy_to(self, other: "Pair") -> None:
        """Replace both files of another pair by these."""
        other.certificate.write_bytes(self.certificate.read_bytes())
        other.key.write_bytes(self.key.read_bytes())


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority, made with the openssl command.

    Attributes:
        pair: its own certificate and key.
    """

    pair: Pair

    @classmethod
    def create(cls, directory: Path, name: str) -> "Authority":
        """Make an authority whose files lie in a directory."""
        pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        _run_openssl(
            *("req", "-x509", "-days", "2", "-subj", f"/CN={name}", "-out", str(pair.certificate)),
            *_new_key(pair.key),
        )
        return cls(pair)

    def sign(self, directory: Path, name: str) -> Pair:
        """Make a certificate for the loopback addresses, and a host of this name."""
        pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:127.0.0.1,IP:::1,DNS:{name}\n")
        _run_openssl(
            *("req", "-new", "-subj", f"/CN={name}", "-out", str(request)), *_new_key(pair.key)
        )
        _run_openssl(
            *("x509", "-req", "-days", "2", "-in", str(request), "-out", str(pair.certificate)),
            *("-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key), "-CAcreateserial"),
            *("-extfile", str(extensions)),
        )
        return pair


def _new_key(file: Path) -> tuple[str, ...]:
    curve = ("-pkeyopt", "ec_paramgen_curve:prime256v1")
    return ("-newkey", "ec", *curve, "-nodes", "-keyout", str(file))


def _run_openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
