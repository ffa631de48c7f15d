"""Alerts see the first mistake in a file: its counter is there before it."""

import pytest

from pdrouter.cluster.view import PodCache
from pdrouter.load.ledger import Ledger
from pdrouter.telemetry.metrics import Metrics


@pytest.mark.parametrize("name", ["pdrouter_endpoints_reloads", "pdrouter_keys_reloads"])
def test_reloads_are_shown_before_there_are_any(name: str) -> None:
    page = Metrics(PodCache(), Ledger(), lambda: 0, dict).render().decode()

    assert f'{name}_total{{result="broken"}} 0.0' in page
    assert f'{name}_total{{result="ok"}} 0.0' in page
