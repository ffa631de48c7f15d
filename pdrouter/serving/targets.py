"""In which time a request's first token is to come: as the client says, or its model's owner."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from pdrouter.cluster.pod_config import Profile
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.header_values import read_one
from pdrouter.openai.headers import REQUEST_CLASS, TTFT_TARGET
from pdrouter.settings.kinds import LONGEST_TARGET_S

_LONGEST_MS = LONGEST_TARGET_S * 1000
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}")


class Target(NamedTuple):
    """The time in which a first token is to come.

    Attributes:
        seconds: that time.
        source: who wants it so, for people.
    """

    seconds: float
    source: str


def read_target(
    headers: Mapping[str, str], classes: Mapping[str, float], profile: Profile
) -> Target | None:
    """Return a request's target: its own, that of its class, or that of its model's profile.

    Args:
        headers: the client's headers.
        classes: seconds until the first token of each class.
        profile: the profile.

    Raises:
        RequestRejected: a header cannot be understood.
    """
    # Few requests have either.
    own = _read_milliseconds(headers) if TTFT_TARGET in headers else None
    name = read_class(headers, classes) if REQUEST_CLASS in headers else ""
    if own is not None:
        return Target(own / 1000, TTFT_TARGET)
    if name:
        return Target(classes[name], f"class {name}")
    if profile.ttft_target_s is not None:
        return Target(profile.ttft_target_s, "profile")
    return None


def _read_milliseconds(headers: Mapping[str, str]) -> float | None:
    text = read_one(headers[TTFT_TARGET])
    if not text:
        return None
    milliseconds = float(text) if _NUMBER.fullmatch(text) else 0.0
    if 0 < milliseconds <= _LONGEST_MS:
        return milliseconds
    message = f"{TTFT_TARGET} must be milliseconds above 0 and up to {_LONGEST_MS}"
    raise RequestRejected(400, "invalid_value", message, TTFT_TARGET)


def read_class(headers: Mapping[str, str], classes: Mapping[str, float]) -> str:
    """Return the class of a request; empty for none.

    Raises:
        RequestRejected: there is none of the name that it gives.
    """
    if REQUEST_CLASS not in headers:
        return ""
    name = read_one(headers[REQUEST_CLASS]).lower()
    if not name or not classes:
        return ""
    if name in classes:
        return name
    message = f"{REQUEST_CLASS} {name[:100]!r} is none of {', '.join(classes)}"
    raise RequestRejected(400, "invalid_value", message, REQUEST_CLASS)
