"""Certificates for servers of tests, made by openssl."""

import subprocess
from pathlib import Path

from fakekube import Certificate


def issue(directory: Path, name: str) -> Certificate:
    """A self-signed certificate of the loopback address, and of a host with this name."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *(
                "-addext",
                f"subjectAltName=IP:127.0.0.1,DNS:{name}",
                "-keyout",
                str(key),
                "-out",
                str(cert),
            ),
        ],
        check=True,
        capture_output=True,
    )
    return Certificate(cert, key, ca=cert)
