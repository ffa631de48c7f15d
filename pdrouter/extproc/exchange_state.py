"""The states of an exchange."""

from enum import Enum, auto


class State(Enum):
    """How far a request has come."""

    START = auto()
    """Nothing has arrived."""
    HEAD = auto()
    """The request's headers have been answered; its body is to come."""
    FORWARDED = auto()
    """The request goes to a pod; its response is to come."""
    RESPONDING = auto()
    """The response's headers have been answered."""
    ENDED = auto()
    """The router has answered the request itself, or has given it up."""
