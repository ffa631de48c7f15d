"""Refusals of the API server, as the `Status` objects that it sends."""

from typing import Any, Self

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
"""The usual `reason` for each code."""


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        code: HTTP status.
        status: the `Status` object to send.
        retry_after: seconds for the `Retry-After` header, or None.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after: int | None = None,
        continue_token: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        if retry_after is not None:
            details = {**(details or {}), "retryAfterSeconds": retry_after}
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": continue_token} if continue_token else {},
            "status": "Failure",
            "message": message,
            "reason": reason or REASONS.get(code, "Unknown"),
            **({"details": details} if details else {}),
            "code": code,
        }

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """What the client sent makes no sense."""
        return cls(400, message)

    @classmethod
    def not_found(cls, qualified: str, name: str) -> Self:
        """No such object."""
        return cls(404, f'{qualified} "{name}" not found', details=_details(qualified, name))

    @classmethod
    def already_exists(cls, qualified: str, name: str) -> Self:
        """A create of a name that is taken."""
        return cls(
            409,
            f'{qualified} "{name}" already exists',
            reason="AlreadyExists",
            details=_details(qualified, name),
        )

    @classmethod
    def conflict(cls, qualified: str, name: str, why: str) -> Self:
        """A write that rests on another state of the object than the server's."""
        return cls(
            409,
            f'Operation cannot be fulfilled on {qualified} "{name}": {why}',
            details=_details(qualified, name),
        )

    @classmethod
    def expired_watch(cls, asked: int, oldest: int) -> Self:
        """A watch from a version that the watch cache no longer has."""
        return cls(410, f"too old resource version: {asked} ({oldest})")

    @classmethod
    def expired_continue(cls, fresh_token: str) -> Self:
        """A page whose snapshot was compacted; the token lists the rest inconsistently."""
        return cls(
            410,
            "The provided continue parameter is too old to display a consistent list result."
            " You can start a new list without the continue parameter, or use the continue token"
            " in this response to retrieve the remainder of the results.",
            continue_token=fresh_token,
        )


def _details(qualified: str, name: str) -> dict[str, Any]:
    plural, _, group = qualified.partition(".")
    return {"name": name, **({"group": group} if group else {}), "kind": plural}
