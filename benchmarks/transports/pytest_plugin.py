"""Runs the end-to-end tests over another transport: `pytest -p benchmarks.transports.pytest_plugin
--transport grpcio tests/e2e`."""

import pytest

from pdrouter import app
from pdrouter.settings.choices import Transport


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses."""
    parser.addoption("--transport", choices=tuple(Transport), required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Put the transport in place, in this process and in those that tests start."""
    import processes

    transport = Transport(config.getoption("--transport"))
    app.SERVERS = dict.fromkeys(Transport, app.SERVERS[transport])
    processes.DEFAULTS["PDROUTER_TRANSPORT"] = transport.value
