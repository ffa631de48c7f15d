"""What a request must be to get in: its key, path, method and framing."""

from collections.abc import Mapping

from pdrouter.extproc.header_changes import UNCHANGED, HeaderChanges
from pdrouter.extproc.messages import RequestHeaders
from pdrouter.extproc.modes import check_modes
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.header_values import is_encoded, list_members
from pdrouter.openai.paths import ENDPOINTS, find_right_path
from pdrouter.openai.stored_responses import parse_stored_path
from pdrouter.openai.unserved_paths import explain_unserved
from pdrouter.serving.dispatched import RequestHead


def require_method(method: str, *allowed: str) -> None:
    """Check the method of a request.

    Raises:
        RequestRejected: it is none of the allowed ones.
    """
    if method not in allowed:
        raise _refuse_method(method, ", ".join(allowed))


def admit(
    event: RequestHeaders, path: str, query: str, changes: HeaderChanges = UNCHANGED
) -> RequestHead | str:
    """Return what the headers of a request for an engine say; of one about a kept answer, its id.

    Args:
        event: the client's headers.
        path: its path, without the query string.
        query: the query string, with its question mark.
        changes: how they are changed for all engines.

    Raises:
        RequestRejected: it cannot be served.
    """
    headers = event.headers
    method, endpoint = headers.get(":method", ""), ENDPOINTS.get(path)
    if endpoint is not None and method == "POST":
        _check_framing(event)
        length = headers.get("content-length", "")
        if event.end_of_stream or (length and not length.strip("0")):
            raise no_body()
        return RequestHead(endpoint, query, changes.apply(headers))
    if method == "CONNECT":  # It has no path.
        raise _refuse_method("CONNECT", "GET, HEAD, POST")
    if endpoint is not None:
        raise _refuse_method(method, "POST")
    stored = parse_stored_path(path, method)
    if stored is None:
        raise _unknown_path(path)
    require_method(method, *stored.methods)
    _check_framing(event)
    return stored.response_id


def _check_framing(event: RequestHeaders) -> None:
    """Refuse what cannot be passed on, or not looked into."""
    headers = event.headers
    if "upgrade" in headers and _asks_for_upgrade(headers):
        message = f"the connection cannot be upgraded to {headers['upgrade'][:40]!r} here"
        raise RequestRejected(400, "upgrade_not_supported", message, "upgrade")
    check_modes(event.protocol_config)
    if "content-encoding" in headers and is_encoded(headers["content-encoding"]):
        message = "compressed request bodies are not accepted"
        raise RequestRejected(415, "unsupported_encoding", message, "content-encoding")


def no_body() -> RequestRejected:
    """Return the error for a request without a body."""
    return RequestRejected(400, "invalid_body", "the request has no body")


def _unknown_path(path: str) -> RequestRejected:
    message = f"path {path[:200]!r} is not served"
    reason = explain_unserved(path)
    if reason is not None:
        return RequestRejected(404, "unknown_path", f"{message}: {reason}")
    right = find_right_path(path)
    if right is not None:
        message += f"; did you mean {right!r}?"
    return RequestRejected(404, "unknown_path", message)


def _refuse_method(method: str, allowed: str) -> RequestRejected:
    message = f"method {method[:20]} is not allowed here, only {allowed}"
    return RequestRejected(405, "method_not_allowed", message, headers=(("allow", allowed),))


def _asks_for_upgrade(headers: Mapping[str, str]) -> bool:
    """Return whether Envoy takes a request for an upgrade: its body then ends with the tunnel."""
    return "upgrade" in list_members(headers.get("connection", "").lower())
