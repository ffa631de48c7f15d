"""Reads the headers of a message of Envoy's.

Nearly all headers of a request are, to the byte, those of the request before: what the client's
library and Envoy say of themselves.
"""

from collections.abc import Iterable, Sequence

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.known_parts import KnownParts
from pdrouter.openai.header_values import KEY_HEADERS


def read_headers(fields: Sequence[bytes]) -> dict[str, str]:
    """Return the headers of a `HeaderMap` by their names in lower case.

    A value that is not UTF-8 comes with replacement characters. A header that occurs more than once
    comes joined, as RFC 9110 section 5.3 and, for cookies, RFC 9113 section 8.2.3 say.

    Raises:
        google.protobuf.message.DecodeError: a header's bytes are none.
    """
    headers = dict(map(_KNOWN.__getitem__, fields))
    return headers if len(headers) == len(fields) else _join(fields)


def _read_header(field: bytes) -> tuple[str, str]:
    header = pb.HeaderValue.FromString(field)
    raw = header.raw_value
    return header.key.lower(), raw.decode("utf-8", "replace") if raw else header.value


def _is_no_secret(header: tuple[str, str]) -> bool:
    name, _ = header
    return name not in _SECRETS


_SECRETS = frozenset({*KEY_HEADERS, "proxy-authorization", "cookie", "set-cookie"})
"""Headers that are not kept when their request has ended."""
_KNOWN = KnownParts(_read_header, _is_no_secret)


def _join(fields: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in fields:
        name, value = _KNOWN[field]
        if name in headers:
            separator = "; " if name == "cookie" else ", "
            value = f"{headers[name]}{separator}{value}"
        headers[name] = value
    return headers
