"""Which KV connector a pod's engine and labels mean."""

from collections.abc import Mapping
from types import MappingProxyType

from pdrouter.engines.connector import KVConnector
from pdrouter.engines.neuron.legacy import NeuronLegacyConnector
from pdrouter.engines.vllm.nixl import NixlConnector
from pdrouter.settings.choices import RemoteHostRewrite

DEFAULT_ENGINE = "vllm"
ENGINES = (DEFAULT_ENGINE,)
"""Engines whose wire is spoken."""


class Connectors:
    """The connectors by name."""

    def __init__(
        self,
        default: str = "shfs",
        nixl_means: str = "nixl",
        remote_host_rewrite: RemoteHostRewrite = RemoteHostRewrite.AUTO,
    ) -> None:
        """Set up the connectors.

        Args:
            default: name for pods that name none.
            nixl_means: what `nixl` stands for, one of `NIXL_MEANINGS`.
            remote_host_rewrite: when to replace `remote_host` in a NIXL handle.
        """
        nixl = NixlConnector(remote_host_rewrite)
        legacy = NeuronLegacyConnector()
        self._by_name: Mapping[str, KVConnector] = MappingProxyType(
            {
                "nixl": legacy if nixl_means == "neuron-legacy" else nixl,
                "shfs": nixl,
                "neuron-legacy": legacy,
            }
        )
        self._default = self._by_name[default]

    def get(self, name: str | None) -> KVConnector:
        """Return the connector of that name, the default for None.

        Raises:
            KeyError: there is none of that name.
        """
        return self._default if name is None else self._by_name[name]
