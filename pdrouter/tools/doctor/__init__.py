"""Finds the known misconfigurations of an installation, before a request does."""
