"""The settings of TLS to engines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.choices import EngineEncryption
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import HOST_NAME, PATH, enumeration


@dataclass(frozen=True)
class EngineTlsSettings:
    """Settings of how engines are spoken to."""

    engine_tls: EngineEncryption = declare(
        EngineEncryption.OFF,
        "PDROUTER_ENGINE_TLS",
        enumeration(EngineEncryption, *EngineEncryption),
        "Whether engines serve HTTPS (vLLM's and SGLang's `--ssl-certfile`), all of them: `off`, "
        "plain text; `on`, with certificates that are checked; `insecure`, with certificates that "
        "nobody checks. It counts for the port that takes requests, and for metrics if they are "
        "there too. `pdrouter envoy-config` goes by these settings as well.",
    )
    engine_ca: Path | None = declare(
        None,
        "PDROUTER_ENGINE_CA",
        PATH,
        "Certificates (PEM) of who signs those of engines; followed when it changes. Unset: those "
        "that the system trusts.",
    )
    engine_server_name: str | None = declare(
        None,
        "PDROUTER_ENGINE_SERVER_NAME",
        HOST_NAME,
        "Name that the certificates of all engines have, since requests go to addresses. Unset: "
        "each has its own address. Envoy needs a name.",
    )
    engine_client_certificate: Path | None = declare(
        None,
        "PDROUTER_ENGINE_CLIENT_CERTIFICATE",
        PATH,
        "Certificate chain (PEM) that the router shows to engines which want one (vLLM's "
        "`--ssl-cert-reqs 2`); followed when it changes.",
        advanced=True,
    )
    engine_client_key: Path | None = declare(
        None,
        "PDROUTER_ENGINE_CLIENT_KEY",
        PATH,
        "Private key (PEM) of that certificate.",
        advanced=True,
    )

    def find_engine_tls_conflicts(self) -> Iterator[str]:
        """Yield which of these settings do not go together, and why."""
        if (self.engine_client_certificate is None) != (self.engine_client_key is None):
            yield "PDROUTER_ENGINE_CLIENT_CERTIFICATE and PDROUTER_ENGINE_CLIENT_KEY go together"
        checked = {
            "PDROUTER_ENGINE_CA": self.engine_ca,
            "PDROUTER_ENGINE_SERVER_NAME": self.engine_server_name,
        }
        given = [name for name, value in checked.items() if value is not None]
        if given and self.engine_tls is EngineEncryption.INSECURE:
            # Who names an authority believes that it counts.
            yield f"{given[0]} has no effect with PDROUTER_ENGINE_TLS=insecure: nothing is checked"
        if self.engine_client_certificate is not None:
            given.append("PDROUTER_ENGINE_CLIENT_CERTIFICATE")
        if given and self.engine_tls is EngineEncryption.OFF:
            yield f"{given[0]} needs PDROUTER_ENGINE_TLS=on"
