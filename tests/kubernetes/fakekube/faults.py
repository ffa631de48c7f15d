"""What goes wrong on purpose with the next requests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .failures import ApiError


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error `Status`; the function makes one for each request."""

    error: Callable[[], ApiError]


@dataclass(frozen=True, slots=True)
class Hang:
    """Accept the request and never answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Answer after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Reset the connection after so many bytes of the answer's body."""

    after_bytes: int


Fault: TypeAlias = Refuse | Hang | Delay | Cut


@dataclass(slots=True)
class _Rule:
    fault: Fault
    verb: str | None
    resource: str | None
    left: int | None

    def fits(self, verb: str, resource: str) -> bool:
        return self.verb in (None, verb) and self.resource in (None, resource)


class Faults:
    """Faults in the order in which they were asked for; a request meets the first that fits it.

    In every method, `verb` is one of list, watch, get, create, update, patch, delete,
    deletecollection and discovery, and `resource` a plural; None fits any. `times` is for how many
    requests, None until `clear`.
    """

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def fail(
        self,
        code: int,
        *,
        verb: str | None = None,
        resource: str | None = None,
        times: int | None = 1,
        message: str | None = None,
        reason: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Answer with this HTTP status and a `Status` object."""
        text = message or _MESSAGES.get(code, f"the server answered {code} because a test said so")

        def error() -> ApiError:
            return ApiError(code, text, reason=reason, retry_after=retry_after)

        self._rules.append(_Rule(Refuse(error), verb, resource, times))

    def hang(
        self, *, verb: str | None = None, resource: str | None = None, times: int | None = 1
    ) -> None:
        """Accept requests and never answer; the connection stays open until the client leaves."""
        self._rules.append(_Rule(Hang(), verb, resource, times))

    def delay(
        self,
        seconds: float,
        *,
        verb: str | None = None,
        resource: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer late."""
        self._rules.append(_Rule(Delay(seconds), verb, resource, times))

    def cut(
        self,
        *,
        after_bytes: int = 0,
        verb: str | None = None,
        resource: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Reset the connection after so many bytes of the answer's body."""
        self._rules.append(_Rule(Cut(after_bytes), verb, resource, times))

    def clear(self) -> None:
        """Let nothing go wrong from now on."""
        self._rules.clear()

    def take(self, verb: str, resource: str) -> Fault | None:
        """The fault that this request meets, which counts as once."""
        for rule in self._rules:
            if rule.fits(verb, resource):
                if rule.left is not None:
                    rule.left -= 1
                    if rule.left <= 0:
                        self._rules.remove(rule)
                return rule.fault
        return None


_MESSAGES = {
    401: "Unauthorized",
    410: "The resourceVersion for the provided list is too old.",
    429: "the server has received too many requests and has asked us to try again later",
    500: "Internal error occurred: etcdserver: request timed out",
    503: "the server is currently unable to handle the request",
}
