"""Simulated engines that enforce the wire contract."""
