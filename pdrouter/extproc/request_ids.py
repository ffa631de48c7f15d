"""The ids of a request: the router's own, which is unique, and the one that its client gave it."""

from collections.abc import Mapping
from random import getrandbits

from pdrouter.openai.headers import CLIENT_REQUEST_ID, REQUEST_ID

# OpenAI's limit for X-Client-Request-Id.
_LONGEST_CLIENT_ID = 512


def create_request_id() -> str:
    """Return a new id, in the form of a UUID."""
    # The 4 and the 8 are what RFC 9562 wants of an id that is otherwise random.
    # Unique, but no secret: asking the kernel for randomness would give up Python's lock, and to
    # get that back takes the longer the busier the process is. A process that is forked off gets
    # a seed of its own.
    digits = getrandbits(128).to_bytes(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def read_client_id(headers: Mapping[str, str]) -> str:
    """Return the id that a client gave its request; nothing if it gave none that can be used.

    Envoy makes up an `x-request-id` where there is none, and may replace a client's. So the other
    header counts first.
    """
    for name in (CLIENT_REQUEST_ID, REQUEST_ID):
        if name in headers:
            value = headers[name].strip()
            if 0 < len(value) <= _LONGEST_CLIENT_ID and value.isascii() and value.isprintable():
                return value
    return ""


def pair_ids(request_id: str, client_request_id: str) -> tuple[tuple[str, str], ...]:
    """Return the response headers that name a request's ids."""
    own = (REQUEST_ID, request_id)
    return (own, (CLIENT_REQUEST_ID, client_request_id)) if client_request_id else (own,)
