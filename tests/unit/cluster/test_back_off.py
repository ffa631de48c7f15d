"""How long the API server is left alone."""

from random import Random
from unittest.mock import Mock

import aiohttp
import pytest

from pdrouter.cluster.kubernetes.api import KubeRefused
from pdrouter.cluster.kubernetes.back_off import BackOff, is_unreachable
from pdrouter.cluster.kubernetes.reflector import DEFAULT_TIMING

KEY = Mock(ssl=True)
REFUSED = aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "refused"))
ERROR = KubeRefused(503, "starting")


def make_back_off(seed: int = 0) -> BackOff:
    timing = DEFAULT_TIMING
    return BackOff(timing.backoff_s, timing.backoff_most_s, timing.unreachable_most_s, Random(seed))


@pytest.mark.parametrize("seed", range(5))
def test_a_server_that_cannot_be_reached_is_asked_every_two_seconds(seed: int) -> None:
    back_off = make_back_off(seed)
    pauses = [back_off.lengthen(REFUSED) for _ in range(50)]
    assert pauses[0] <= DEFAULT_TIMING.backoff_s
    assert all(0 < pause <= 2 for pause in pauses)
    assert min(pauses[10:]) >= 1
    # Many routers that wait for the same server do not come all at once.
    assert len(set(pauses[10:])) == 40


def test_a_server_that_refuses_is_left_alone_for_longer_and_longer() -> None:
    back_off = make_back_off()
    pauses = [back_off.lengthen(ERROR) for _ in range(50)]
    assert pauses[0] <= 0.2
    assert max(pauses) <= 30
    assert min(pauses[10:]) >= 15


def test_a_server_may_say_for_how_long() -> None:
    back_off = make_back_off()
    assert back_off.lengthen(ERROR, 7.0) == 7.0
    assert back_off.lengthen(ERROR, 3600.0) == 30.0


def test_the_first_error_after_an_outage_is_a_first_one() -> None:
    back_off = make_back_off()
    for _ in range(20):
        back_off.lengthen(REFUSED)
    assert back_off.lengthen(ERROR) <= 0.2
    for _ in range(20):
        back_off.lengthen(ERROR)
    assert back_off.lengthen(REFUSED) <= 0.2


def test_what_works_begins_anew() -> None:
    back_off = make_back_off()
    for _ in range(20):
        back_off.lengthen(ERROR)
    back_off.reset()
    assert back_off.lengthen(ERROR) <= 0.2


@pytest.mark.parametrize(
    ("error", "unreachable"),
    [
        (REFUSED, True),
        (aiohttp.ClientConnectorDNSError(KEY, OSError("unknown")), True),
        (aiohttp.ConnectionTimeoutError(), True),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientOSError(104, "reset"), True),
        (aiohttp.SocketTimeoutError(), False),
        (aiohttp.ClientConnectorSSLError(KEY, OSError("certificate")), False),
        (aiohttp.ClientPayloadError(), False),
        (TimeoutError(), False),
        (ERROR, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_out_of_reach(error: Exception, *, unreachable: bool) -> None:
    assert is_unreachable(error) is unreachable
