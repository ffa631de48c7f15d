"""Envoy's gRPC access log: what it says of requests that have ended."""
