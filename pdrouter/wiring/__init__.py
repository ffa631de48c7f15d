"""Puts together what exchanges share, for the application, tests and simulations."""
