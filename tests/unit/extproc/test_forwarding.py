"""The replies that send a request on its way."""

import pytest

from pdrouter.extproc.codec import encode
from pdrouter.extproc.forwarding import strip
from pdrouter.extproc.messages import BodyMode
from pdrouter.openai.headers import STRIPPED_HEADERS

USUAL = {":path": "/v1/completions", "x-request-id": "a", "x-envoy-external-address": "10.0.0.1"}


@pytest.mark.parametrize("mode", [None, *BodyMode])
def test_the_same_headers_are_removed_from_every_request(mode: BodyMode | None) -> None:
    reply = strip(mode, USUAL)
    assert reply.remove_headers == STRIPPED_HEADERS
    assert reply is strip(mode, {})
    assert encode(reply) is encode(reply)


@pytest.mark.parametrize(
    "name",
    [
        "x-envoy-retry-on",
        "x-envoy-max-retries",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-original-dst-host",
        "x-data-parallel-anything-newer",
    ],
)
def test_rare_ones_are_removed_from_requests_that_have_them(name: str) -> None:
    reply = strip(None, {**USUAL, name: "1"})
    assert reply.remove_headers == (*STRIPPED_HEADERS, name)


def test_what_is_removed_anyhow_is_named_once() -> None:
    assert strip(None, {**USUAL, "x-data-parallel-rank": "1"}).remove_headers == STRIPPED_HEADERS
