"""Runs the end-to-end tests over another transport: `pytest -p benchmarks.transports.pytest_plugin
--transport http2 tests/e2e`."""

import pytest

from benchmarks.transports.contenders import TRANSPORTS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses."""
    parser.addoption("--transport", choices=tuple(TRANSPORTS), required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Put the transport in place, in this process and in those that tests start."""
    import processes

    name = config.getoption("--transport")
    TRANSPORTS[name].install()
    processes.ROUTER_COMMAND = ("-m", "benchmarks.transports.serving", name, "serve")
