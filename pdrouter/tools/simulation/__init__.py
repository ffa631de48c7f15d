"""Engines that enforce the wire contract of disaggregated serving, for tests and the demo."""
