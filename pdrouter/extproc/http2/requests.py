"""The head of a request: what is checked of it (RFC 9113, section 8)."""

from collections.abc import Iterable
from dataclasses import dataclass

_PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
_NEEDED = frozenset((":method", ":scheme", ":path"))
_OF_CONNECTIONS = frozenset(
    ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
)


class RequestMalformed(Exception):
    """A request that HTTP/2 does not allow: its stream is reset."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a gRPC server needs of a request's headers.

    Attributes:
        path: service and method.
        grpc: whether it is a gRPC call.
        encoding: how its messages are compressed.
    """

    path: str
    grpc: bool
    encoding: str


def read_request_head(headers: Iterable[tuple[str, str]]) -> RequestHead:
    """Check the headers of a request.

    Raises:
        RequestMalformed: they are not allowed.
    """
    pseudo: dict[str, str] = {}
    content_type, encoding, regular = "", "identity", False
    for name, value in headers:
        if name.startswith(":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise RequestMalformed(f"pseudo-header {name!r} is unknown, late or repeated")
            pseudo[name] = value
            continue
        regular = True
        if name in _OF_CONNECTIONS or name != name.lower() or not name:
            raise RequestMalformed(f"header {name!r} is not for HTTP/2")
        if name == "te" and value != "trailers":
            raise RequestMalformed("te may only be trailers")
        if name == "content-type":
            content_type = value
        elif name == "grpc-encoding":
            encoding = value
    if not pseudo.keys() >= _NEEDED:
        raise RequestMalformed("a pseudo-header is missing")
    is_grpc = pseudo[":method"] == "POST" and content_type.startswith("application/grpc")
    return RequestHead(pseudo[":path"], is_grpc, encoding)
