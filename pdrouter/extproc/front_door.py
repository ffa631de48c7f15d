"""What a request must be to get in: its key, path, method and framing, and the filter's modes."""

import hmac
from collections.abc import Mapping

from pdrouter.extproc.dispatch import RequestHead
from pdrouter.extproc.messages import BodyMode, ProtocolConfig, RequestHeaders
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.paths import ENDPOINTS, split_path


def authenticate(headers: Mapping[str, str], expected: str | None) -> None:
    """Check the key that a client presents.

    Args:
        headers: the client's headers.
        expected: the right key; None to let everybody in.

    Raises:
        RequestRejected: it is another one, or none.
    """
    if expected is None:
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not hmac.compare_digest(presented.encode(), expected.encode()):
        message = "Incorrect API key provided"
        raise RequestRejected(401, "invalid_api_key", message, "api_key")


def require_method(method: str, allowed: str) -> None:
    """Check the method of a request.

    Raises:
        RequestRejected: it is another one than the allowed one.
    """
    if method != allowed:
        message = f"method {method[:20]} is not allowed here, only {allowed}"
        headers = (("allow", allowed),)
        raise RequestRejected(405, "method_not_allowed", message, headers=headers)


def admit(event: RequestHeaders) -> RequestHead:
    """Return what the headers of a request for an engine say.

    Raises:
        RequestRejected: it cannot be served.
    """
    headers = event.headers
    path, query = split_path(headers.get(":path", ""))
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise RequestRejected(404, "unknown_path", f"path {path[:200]!r} is not served")
    require_method(headers.get(":method", ""), "POST")
    _check_modes(event.protocol_config)
    if headers.get("content-encoding", "identity") != "identity":
        message = "compressed request bodies are not accepted"
        raise RequestRejected(415, "unsupported_encoding", message, "content-encoding")
    if event.end_of_stream:
        raise RequestRejected(400, "invalid_body", "the request has no body")
    return RequestHead(endpoint, query, headers)


def _check_modes(config: ProtocolConfig | None) -> None:
    """Refuse body modes under which the filter would wait for replies of another kind."""
    if config is None:  # An Envoy that does not tell; the manifests for it say BUFFERED.
        return
    if config.request_body_mode is not BodyMode.BUFFERED:
        raise _misconfigured("request_body_mode", config.request_body_mode, "BUFFERED")
    if config.response_body_mode not in (BodyMode.NONE, BodyMode.STREAMED):
        raise _misconfigured("response_body_mode", config.response_body_mode, "NONE")


def _misconfigured(name: str, mode: BodyMode, wanted: str) -> RequestRejected:
    message = f"the ext_proc filter's {name} is {mode.name}, but must be {wanted}"
    return RequestRejected(500, "ext_proc_misconfigured", message)
