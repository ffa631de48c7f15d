"""Headers that tell a client what is left of its limits, as its API names them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

import msgspec

from pdrouter.openai.errors import is_anthropic


class LimitState(msgspec.Struct, frozen=True):
    """One limit, as it stands.

    Attributes:
        limit: the most.
        remaining: what is left.
        reset_s: seconds until all of it is there again.
    """

    limit: int
    remaining: int
    reset_s: float

    @property
    def share_left(self) -> float:
        """How much is left of it, from 0 to 1."""
        return self.remaining / self.limit if self.limit else 0.0


def describe_limits(
    path: str, limits: Mapping[str, LimitState], now: float
) -> tuple[tuple[str, str], ...]:
    """Return the headers for an answer.

    Args:
        path: path of the request.
        limits: what is limited by its name: `requests`, `tokens`.
        now: seconds since the epoch.
    """
    describe = _describe_anthropic if is_anthropic(path) else _describe_openai
    return tuple(
        header for name, state in limits.items() for header in describe(name, state, now).items()
    )


def _describe_openai(name: str, state: LimitState, now: float) -> Mapping[str, str]:
    del now
    return {
        f"x-ratelimit-limit-{name}": str(state.limit),
        f"x-ratelimit-remaining-{name}": str(state.remaining),
        f"x-ratelimit-reset-{name}": write_duration(state.reset_s),
    }


def _describe_anthropic(name: str, state: LimitState, now: float) -> Mapping[str, str]:
    reset = datetime.fromtimestamp(now + state.reset_s, UTC)
    return MappingProxyType(
        {
            f"anthropic-ratelimit-{name}-limit": str(state.limit),
            f"anthropic-ratelimit-{name}-remaining": str(state.remaining),
            f"anthropic-ratelimit-{name}-reset": reset.isoformat(timespec="seconds").replace(
                "+00:00", "Z"
            ),
        }
    )


def write_duration(seconds: float) -> str:
    """Return a time as OpenAI's API writes it: `820ms`, `7.6s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"
