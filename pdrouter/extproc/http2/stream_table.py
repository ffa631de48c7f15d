"""Which streams of a connection there are and were (RFC 9113, section 5.1)."""

from pdrouter.extproc.http2.stream import Stream


class StreamTable:
    """The streams that are open, and those over of which the peer may not know yet.

    Attributes:
        open: the calls that are open, by number.
        last: the highest number that the peer has used.
    """

    __slots__ = ("_most", "_unfinished", "last", "open")

    def __init__(self, most: int) -> None:
        """Begin without any.

        Args:
            most: how many streams may be open, and of how many over is remembered that the peer
                had not sent all. Who forgets one takes what still comes for a fault of the peer.
        """
        self._most = most
        self._unfinished: dict[int, None] = {}
        self.open: dict[int, Stream] = {}
        self.last = 0

    @property
    def full(self) -> bool:
        """Whether no stream may be opened."""
        return len(self.open) >= self._most

    def close(self, stream: Stream) -> None:
        """Take a stream off the list that is over."""
        if self.open.pop(stream.id, None) is not None and not stream.ended:
            self.expect_rest(stream.id)

    def expect_rest(self, number: int) -> None:
        """Note that the peer may go on to send on a stream that was ended here."""
        self._unfinished[number] = None
        if len(self._unfinished) > self._most:
            del self._unfinished[next(iter(self._unfinished))]

    def take_rest(self, number: int, *, ended: bool) -> bool:
        """Return whether what comes on a stream that is over was sent before its peer knew.

        Args:
            number: the stream.
            ended: whether it is the last that comes on it.
        """
        if number not in self._unfinished:
            return False
        if ended:
            del self._unfinished[number]
        return True
