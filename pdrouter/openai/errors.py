"""Errors in the envelope that the clients of a path understand: OpenAI's or Anthropic's."""

import msgspec

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

ANTHROPIC_PATH = "/v1/messages"
"""This path and those below it are of Anthropic's API."""


class RequestRejected(Exception):
    """A request that the router answers itself, with an error.

    Attributes:
        status: HTTP status of the answer.
        code: machine-readable reason, stable across versions (`error.code`).
        message: what is wrong and, where possible, what to do (`error.message`).
        param: the member of the body or the header at fault (`error.param`).
        headers: further headers of the answer, such as `retry-after` or `allow`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers

    def body(self, path: str = "", request_id: str = "") -> bytes:
        """Return the JSON body of the answer.

        Args:
            path: path of the request, without query string.
            request_id: id of the request.
        """
        if is_anthropic(path):
            return encode_anthropic_error(self.status, self.message, request_id)
        return encode_error(self.status, self.code, self.message, self.param)


def is_anthropic(path: str) -> bool:
    """Return whether the clients of a path speak Anthropic's API."""
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def encode_error(status: int, code: str | None, message: str, param: str | None = None) -> bytes:
    """Return `{"error": {message, type, param, code}}`; the type follows from the status.

    The types are those that aibrix gives (503 is `overloaded_error`, other 5xx `api_error`), which
    are also those of the OpenAI and Anthropic SDKs.
    """
    error_type = _TYPES.get(status, _find_general_type(status))
    return msgspec.json.encode(
        {"error": {"message": message, "type": error_type, "param": param, "code": code}}
    )


def encode_anthropic_error(status: int, message: str, request_id: str) -> bytes:
    """Return `{"type": "error", "error": {type, message}, request_id}`, as Anthropic's API does."""
    error_type = _ANTHROPIC_TYPES.get(status, _find_general_type(status))
    error = {"type": error_type, "message": message}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def _find_general_type(status: int) -> str:
    return "api_error" if status >= 500 else "invalid_request_error"
