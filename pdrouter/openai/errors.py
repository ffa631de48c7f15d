"""Errors in the OpenAI envelope."""

import msgspec

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


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

    def body(self) -> bytes:
        """Return the JSON body of the answer."""
        return encode_error(self.status, self.code, self.message, self.param)


def encode_error(status: int, code: str | None, message: str, param: str | None = None) -> bytes:
    """Return `{"error": {message, type, param, code}}`; the type follows from the status.

    The types are those that aibrix gives (503 is `overloaded_error`, other 5xx `api_error`), which
    are also those of the OpenAI and Anthropic SDKs.
    """
    error_type = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode(
        {"error": {"message": message, "type": error_type, "param": param, "code": code}}
    )
