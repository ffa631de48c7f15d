"""Reads the headers of a message of Envoy's.

Nearly all headers of a request are, to the byte, those of the request before: what the client's
library and Envoy say of themselves. So a header is told by its bytes, and read where these are new.
"""

from collections.abc import Iterable
from typing import Final

from pdrouter.extproc import ext_proc_pb2 as pb

_MOST: Final = 512
_LARGEST: Final = 256
"""Bytes of the largest header that is kept; together they are 128 KiB at the most."""


class _KnownHeaders(dict[bytes, tuple[str, str]]):
    """Names, in lower case, and values of headers, by their bytes."""

    def __missing__(self, field: bytes) -> tuple[str, str]:
        header = pb.HeaderValue.FromString(field)
        raw = header.raw_value
        read = header.key.lower(), raw.decode("utf-8", "replace") if raw else header.value
        if len(field) <= _LARGEST:
            if len(self) >= _MOST:
                self.clear()
            self[field] = read
        return read


_KNOWN = _KnownHeaders()


def read_header_map(header_map: pb.HeaderMap) -> dict[str, str]:
    """Return headers by their names in lower case.

    A value that is not UTF-8 comes with replacement characters. A header that occurs more than once
    comes joined, as RFC 9110 section 5.3 and, for cookies, RFC 9113 section 8.2.3 say.

    Raises:
        google.protobuf.message.DecodeError: a header's bytes are none.
    """
    fields = header_map.headers
    headers = dict(map(_KNOWN.__getitem__, fields))
    return headers if len(headers) == len(fields) else _join(fields)


def _join(fields: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in fields:
        name, value = _KNOWN[field]
        if name in headers:
            separator = "; " if name == "cookie" else ", "
            value = f"{headers[name]}{separator}{value}"
        headers[name] = value
    return headers
