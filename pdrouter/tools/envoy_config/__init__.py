"""The bootstrap of an Envoy that serves the router, built from Envoy's own message types."""

from pdrouter.settings.choices import Routing
from pdrouter.tools.envoy_config.bootstrap import build_bootstrap, to_yaml
from pdrouter.tools.envoy_config.options import Address, EnvoyConfig, ResponseBodyMode

__all__ = ["Address", "EnvoyConfig", "ResponseBodyMode", "Routing", "build_bootstrap", "to_yaml"]
