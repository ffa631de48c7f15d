"""Runs the prefill leg."""
