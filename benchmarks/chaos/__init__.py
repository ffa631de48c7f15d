"""Thousands of requests over an installation in which everything fails, and what holds."""
