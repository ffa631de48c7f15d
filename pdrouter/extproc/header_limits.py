"""How many headers Envoy lets the router add: it refuses what goes beyond its limits.

It does so when the reply arrives, after prefill has run and with an error that says nothing. So the
router counts first.
"""

from dataclasses import dataclass
from itertools import chain

from pdrouter.extproc.messages import Headers, RequestHeaders, ResponseHeaders
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.headers import (
    DESTINATION_ENDPOINT,
    MAX_RETRIES,
    RANK,
    REQUEST_ID,
    ROUTING_STRATEGY,
    TARGET_POD,
)

# Names of which each is set at most once, and a request without a strategy gets fewer.
_SET = (
    TARGET_POD,
    DESTINATION_ENDPOINT,
    ROUTING_STRATEGY,
    RANK,
    MAX_RETRIES,
    REQUEST_ID,
    "content-length",
)
_SET_BYTES = 1024


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Envoy's limits for the headers of one message, pseudo headers and its own among them.

    Attributes:
        count: how many there may be.
        size: bytes of all names and values.
    """

    count: int
    size: int

    def check_request(self, event: RequestHeaders) -> None:
        """Refuse a request that has no room for what the router adds.

        Raises:
            RequestRejected: there are too many headers, or they are too large.
        """
        if event.count + len(_SET) > self.count:
            added = sum(name not in event.headers for name in _SET)
            if event.count + added > self.count:
                raise _too_large(f"has {event.count} headers", f"{self.count - added}")
        if event.size + _SET_BYTES > self.size:
            raise _too_large(
                f"has {event.size} bytes of headers", f"{self.size - _SET_BYTES} bytes"
            )

    def keep_fitting(self, added: Headers, event: ResponseHeaders) -> Headers:
        """Return those headers that a response has room for, of the first as many as possible."""
        count, size = self.count - event.count, self.size - event.size
        if count >= len(added) and size >= len("".join(chain.from_iterable(added))):
            return added
        kept = []
        for name, value in added:
            new = name not in event.headers
            if count >= new and size >= len(name) + len(value):
                count -= new
                size -= len(name) + len(value)
                kept.append((name, value))
        return tuple(kept)


ENVOYS_DEFAULTS = HeaderLimits(100, 60 * 1024)
"""Envoy's limits where nobody has set any."""


def _too_large(what: str, allowed: str) -> RequestRejected:
    message = f"the request {what}, with those of the gateway; at most {allowed} are allowed"
    return RequestRejected(431, "request_headers_too_large", message)
