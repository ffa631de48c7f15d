"""The head of a request: what is checked of it (RFC 9113, section 8)."""

from collections.abc import Iterable
from dataclasses import dataclass

_PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
_NEEDED = frozenset((":method", ":scheme", ":path"))
_OF_CONNECTIONS = frozenset(
    ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
)
_MOST_DIGITS = 18


class RequestMalformed(Exception):
    """A request that HTTP/2 does not allow: its stream is reset."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a gRPC server needs of a request's headers.

    Attributes:
        path: service and method.
        grpc: whether it is a gRPC call.
        encoding: how its messages are compressed.
        content_length: bytes of its body; None if it does not say.
        traceparent: the span of the client that it belongs to; empty if it does not say.
    """

    path: str
    grpc: bool
    encoding: str
    content_length: int | None
    traceparent: str = ""


def read_request_head(headers: Iterable[tuple[str, str]]) -> RequestHead:
    """Check the headers of a request.

    Raises:
        RequestMalformed: they are not allowed.
    """
    pseudo: dict[str, str] = {}
    regular: dict[str, str] = {}
    for name, value in headers:
        if not name.startswith(":"):
            _check_regular(name, value)
            if regular.setdefault(name, value) != value and name == "content-length":
                raise RequestMalformed("content-length says two things")
        elif regular or name in pseudo or name not in _PSEUDO:
            raise RequestMalformed(f"pseudo-header {name!r} is unknown, late or repeated")
        else:
            pseudo[name] = value
    if not pseudo.keys() >= _NEEDED or not pseudo[":path"]:
        raise RequestMalformed("a pseudo-header is missing")
    content_type = regular.get("content-type", "")
    return RequestHead(
        pseudo[":path"],
        pseudo[":method"] == "POST" and content_type.startswith("application/grpc"),
        regular.get("grpc-encoding", "identity"),
        _read_content_length(regular.get("content-length")),
        regular.get("traceparent", ""),
    )


def _check_regular(name: str, value: str) -> None:
    if name in _OF_CONNECTIONS or name != name.lower() or not name:
        raise RequestMalformed(f"header {name!r} is not for HTTP/2")
    if name == "te" and value != "trailers":
        raise RequestMalformed("te may only be trailers")


def _read_content_length(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _MOST_DIGITS:
        raise RequestMalformed("content-length is no number")
    return int(value)
