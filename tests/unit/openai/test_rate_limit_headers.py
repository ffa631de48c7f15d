"""What is left of limits, in the words of each API."""

import pytest

from pdrouter.openai.rate_limit_headers import LimitState, describe_limits, write_duration

STATES = {"requests": LimitState(60, 59, 0.82), "tokens": LimitState(1000, 0, 61.0)}


def test_openais_clients_are_told_times() -> None:
    assert dict(describe_limits("/v1/chat/completions", STATES, 0.0)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "820ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m1s",
    }


def test_anthropics_clients_are_told_moments() -> None:
    assert dict(describe_limits("/v1/messages", STATES, 1_700_000_000.0)) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:20Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2023-11-14T22:14:21Z",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0174, "17ms"), (1, "1s"), (7.66, "7.66s"), (59.96, "59.96s"), (360, "6m0s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text
