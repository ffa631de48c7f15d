"""How far a request has come, for whoever must act before its answer is complete."""

import asyncio


class PostProgress:
    """How far a request has come.

    Attributes:
        sent: set once the whole request is written to an open connection.
        answered: set once the head of the answer is there.
        status: that answer's status; 0 before.
        drains: whether a good answer is read for its end alone: nothing of a large one is needed.
    """

    __slots__ = ("answered", "drains", "sent", "status")

    def __init__(self, *, drains: bool = False) -> None:
        """Begin before anything is sent.

        Args:
            drains: whether a good answer is read for its end alone.
        """
        self.drains = drains
        self.sent = asyncio.Event()
        self.answered = asyncio.Event()
        self.status = 0

    def note_head(self, status: int) -> None:
        """Note the head of the answer; an engine may give it before it has read the request."""
        self.status = status
        self.sent.set()
        self.answered.set()
