"""An Envoy ext_proc server that routes LLM requests to prefill/decode disaggregated engines."""

__version__ = "0.1.0"
