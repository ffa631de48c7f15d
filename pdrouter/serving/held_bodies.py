"""How large bodies may be: each of them, and all that wait (for prefill, for Envoy) together."""

import msgspec

from pdrouter.openai.errors import RequestRejected
from pdrouter.serving.refusals import refuse_for_now


class HeldBodies:
    """Counts the bytes of the bodies that are held, and lets them not become too many.

    A body is judged when it has come: to an answer before its end, Envoy closes an HTTP/1.1
    connection while the client still sends, and many clients then see no answer.

    Attributes:
        largest: size of the largest body.
        limit: bytes of all bodies together.
        bytes: how many there are.
        refused: bodies that were refused, since there was no room for them.
    """

    __slots__ = ("bytes", "largest", "limit", "refused")

    def __init__(self, largest: int, limit: int) -> None:
        """Begin with none.

        Args:
            largest: size of the largest body.
            limit: bytes of all bodies together; one of them always has room.
        """
        self.largest = largest
        self.limit = max(largest, limit)
        self.bytes = 0
        self.refused = 0

    def hold(self, size: int) -> "HeldBody":
        """Count a body until what is returned is released.

        Raises:
            RequestRejected: it is too large, or has no room.
        """
        if size > self.largest:
            message = f"the request body is larger than the limit of {self.largest} bytes"
            raise RequestRejected(413, "request_too_large", message)
        if self.bytes + size > self.limit:
            self.refused += 1
            raise self._refuse(size)
        self.bytes += size
        return HeldBody(self, size)

    def _refuse(self, size: int) -> RequestRejected:
        message = (
            f"the request body has {size} bytes, but other bodies that wait leave"
            f" {max(0, self.limit - self.bytes)} of {self.limit}"
        )
        return refuse_for_now(503, "body_memory_exhausted", message)


class HeldBody(msgspec.Struct):
    """One body that is counted until it is released, exactly once.

    Attributes:
        bodies: count it.
        size: its size; 0 once it is released.
    """

    bodies: HeldBodies
    size: int

    def release(self) -> None:
        """Stop counting the body. Further calls change nothing."""
        self.bodies.bytes -= self.size
        self.size = 0
