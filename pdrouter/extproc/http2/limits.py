"""What a peer may do."""

from collections.abc import Callable
from dataclasses import dataclass

from pdrouter.extproc.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    ConnectionFault,
    ErrorCode,
    Setting,
    encode_settings,
    encode_window_update,
)


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen: so often at once, and then so often per second."""

    burst: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may do on one connection.

    Attributes:
        message_bytes: size of the largest message.
        streams: how many streams may be open.
        header_list_bytes: size of the largest header list, and of its compressed form.
        stream_window: bytes that may be under way on one stream. For a message that is larger, it
            is opened once there is room.
        connection_window: bytes that may be under way on all streams.
        frame_bytes: size of the largest frame.
        control: frames that bring no work forward: PING, SETTINGS, PRIORITY, empty DATA, unknown.
        resets: streams given up before anything was answered on them. As many as can be open may
            be given up at once: an overloaded server sees that from a peer that means no harm.
        window_updates: WINDOW_UPDATE frames.
        unread_answers: answers to PING and SETTINGS that wait while the peer reads nothing.
        unread_bytes: bytes that wait while the peer reads nothing.
        keepalive_s: seconds of silence after which a peer is probed, and then given up.
        closing_s: seconds that a peer has to read the last bytes of a connection.
    """

    message_bytes: int = 16 * 2**20
    streams: int = 10_000
    header_list_bytes: int = 64 * 2**10
    stream_window: int = DEFAULT_WINDOW
    connection_window: int = 2**24
    frame_bytes: int = DEFAULT_FRAME_BYTES
    control: Rate = Rate(1_000, 100)
    resets: Rate = Rate(10_000, 100)
    window_updates: Rate = Rate(10_000, 10_000)
    unread_answers: int = 100
    unread_bytes: int = 2**22
    keepalive_s: float = 30.0
    closing_s: float = 1.0

    def announce(self) -> bytes:
        """Write the frames that open our side of a connection."""
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: self.streams,
            Setting.INITIAL_WINDOW_SIZE: self.stream_window,
            Setting.MAX_FRAME_SIZE: self.frame_bytes,
            Setting.MAX_HEADER_LIST_SIZE: self.header_list_bytes,
        }
        growth = self.connection_window - DEFAULT_WINDOW
        return encode_settings(settings) + encode_window_update(0, growth)


class Budget:
    """Says whether a rate is kept, by a bucket of tokens."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._left = float(rate.burst)
        self._at = now

    def spend(self, now: float) -> bool:
        """Count one more; false if it is one too many."""
        rate = self._rate
        self._left = min(rate.burst, self._left + (now - self._at) * rate.per_second) - 1
        self._at = now
        return self._left >= 0


class Floods:
    """Counts what a peer may not do too often on a connection, however cheap each is for it."""

    __slots__ = ("_clock", "_control", "_limits", "_resets", "_unread", "_window_updates")

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        """Begin with nothing counted.

        Args:
            limits: how often it may.
            clock: gives seconds.
        """
        now = clock()
        self._limits = limits
        self._unread = 0
        self._clock = clock
        self._control = Budget(limits.control, now)
        self._resets = Budget(limits.resets, now)
        self._window_updates = Budget(limits.window_updates, now)

    def count_control(self) -> None:
        """Count a frame that brings no work forward.

        Raises:
            ConnectionFault: it is one too many.
        """
        self._spend(self._control, "too many frames without work")

    def count_answer(self, *, read: bool) -> None:
        """Count an answer to a PING or to SETTINGS.

        Args:
            read: whether the peer reads what is sent.

        Raises:
            ConnectionFault: it is one too many.
        """
        self.count_control()
        self._unread = 0 if read else self._unread + 1
        if self._unread > self._limits.unread_answers:
            message = "answers are asked for, but not read"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, message)

    def count_reset(self) -> None:
        """Count a stream that was given up before anything was answered on it.

        Raises:
            ConnectionFault: it is one too many.
        """
        self._spend(self._resets, "too many streams are given up")

    def count_window_update(self) -> None:
        """Count a WINDOW_UPDATE frame.

        Raises:
            ConnectionFault: it is one too many.
        """
        self._spend(self._window_updates, "too many window updates")

    def _spend(self, budget: Budget, reason: str) -> None:
        if not budget.spend(self._clock()):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason)
