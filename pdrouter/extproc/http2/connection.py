"""One connection: frames in, calls begun, frames out, and limits on what the peer may do."""

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, cast

from pdrouter.extproc.http2 import frames
from pdrouter.extproc.http2.frame_steps import Step, refuse, tabulate
from pdrouter.extproc.http2.frames import ConnectionFault, ErrorCode, Frame
from pdrouter.extproc.http2.header_blocks import HeaderBlock, HeaderBlocks
from pdrouter.extproc.http2.inbox import Inbox
from pdrouter.extproc.http2.keepalive import Keepalive
from pdrouter.extproc.http2.limits import Floods, Limits
from pdrouter.extproc.http2.outbox import Outbox
from pdrouter.extproc.http2.peer_settings import PeerSettings
from pdrouter.extproc.http2.requests import RequestMalformed
from pdrouter.extproc.http2.stream import Stream
from pdrouter.extproc.http2.stream_table import StreamTable
from pdrouter.extproc.http2.windows import ReceiveWindow, SendWindow, SharedWindow, WindowExceeded
from pdrouter.turns import Turns

_DRAINING: Final = b"draining"
_PROBING: Final = b"probing "


class Connection(asyncio.Protocol):
    """A client's connection.

    Attributes:
        streams: the calls that are open, and what is known of others.
        window: what may be sent on all streams together.
        peer: the settings of the peer.
        outbox: sends frames.
        turns: spreads what is ready at once.
        loop: the event loop.
        lost: set once the connection is gone.
    """

    def __init__(
        self,
        start: Callable[[Stream], None],
        limits: Limits,
        opened: "set[Connection]",
        turns: Turns,
    ) -> None:
        """Begin before there is a transport.

        Args:
            start: begins to answer a call.
            limits: what the peer may do.
            opened: where the connection lists itself while it is open.
            turns: spreads what is ready at once.
        """
        self._start = start
        self._limits = limits
        self._opened = opened
        self.turns = turns
        self.loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.streams = StreamTable(limits.streams)
        self.window = SharedWindow(frames.DEFAULT_WINDOW)
        self.outbox = Outbox(self.window, limits.unread_bytes, turns)
        self.lost = asyncio.Event()
        self._receive_window = ReceiveWindow(limits.connection_window)
        self._inbox = Inbox(limits.frame_bytes, self._receive, self._fail, turns, self.loop.time)
        self._blocks = HeaderBlocks(limits.header_list_bytes)
        self.peer = PeerSettings(self._blocks.max_table_bytes)
        self._accepting = True
        self._closing = False
        self._steps = self._FIRST_STEPS
        self._keepalive = Keepalive(limits.keepalive_s, self._ask, self.outbox.abort)
        self._floods = Floods(limits, self.loop.time)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our settings, which opens the connection on our side."""
        transport = cast("asyncio.Transport", transport)
        self._inbox.open(transport)
        self.outbox.open(transport)
        self._opened.add(self)
        self.outbox.send(self._limits.announce())

    def data_received(self, data: bytes) -> None:
        """Act on what the peer has sent."""
        self._keepalive.heard = True
        self.turns.gather(self._inbox.feed, data)

    def pause_writing(self) -> None:
        """Stop writing: the peer does not read."""
        self.window.writing = False

    def resume_writing(self) -> None:
        """Write again."""
        self.window.writing = True
        self.window.pass_turn()

    def connection_lost(self, error: Exception | None) -> None:
        """Stop all that was being answered."""
        del error  # However it ended, the calls are over.
        self._closing = True
        self._opened.discard(self)
        self._inbox.close()
        self._keepalive.stop()
        for timer in self._timers.values():
            timer.cancel()
        self._abandon_all()
        self.outbox.close()
        self.lost.set()

    # What streams call.

    def forget(self, stream: Stream) -> None:
        """Take a stream that is over off the list."""
        self.streams.close(stream)
        if not self._accepting and not self.streams.open:
            self.close(ErrorCode.NO_ERROR, "drained")

    # What the server calls.

    def drain(self) -> None:
        """Ask the peer for no more streams; close when the open ones have ended.

        In two steps (RFC 9113, section 6.8): streams that are on their way are still served.
        """
        self.outbox.send(frames.encode_goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, "draining"))
        self.outbox.send(frames.encode_frame(frames.PING, 0, 0, _DRAINING))
        self._wait("drain", self._limits.closing_s, self._stop_accepting)

    def close(self, code: ErrorCode, reason: str) -> None:
        """Say why, and close the connection; all its calls are stopped.

        The peer has a moment to read this: with bytes of its own still unread here, closing at
        once would make the kernel throw it away.
        """
        if self._closing:
            return
        self._closing = True
        self.outbox.send(frames.encode_goaway(self.streams.last, code, reason))
        self._abandon_all()
        self.outbox.finish()
        self._wait("abort", self._limits.closing_s, self.outbox.abort)

    def _abandon_all(self) -> None:
        for stream in list(self.streams.open.values()):
            stream.abandon()
        self.streams.open.clear()

    def _stop_accepting(self) -> None:
        if self._accepting and not self._closing:
            self._accepting = False
            self._timers.pop("drain").cancel()
            if self.streams.open:
                goaway = frames.encode_goaway(self.streams.last, ErrorCode.NO_ERROR, "draining")
                self.outbox.send(goaway)
            else:
                self.close(ErrorCode.NO_ERROR, "drained")

    def _ask(self) -> None:
        self.outbox.send(frames.encode_frame(frames.PING, 0, 0, _PROBING))

    def _wait(self, purpose: str, seconds: float, call: Callable[[], None]) -> None:
        self._timers[purpose] = self.loop.call_later(seconds, call)

    # Frames.

    def _fail(self, fault: ConnectionFault) -> None:
        self.close(fault.code, fault.reason)

    def _receive(self, frame: Frame) -> None:
        if not self._closing:
            self._steps[frame.kind](self, frame)

    def _on_data(self, frame: Frame) -> None:
        data, flags, window = frame.payload, frame.flags, self._receive_window
        size, ended = len(data), flags & frames.END_STREAM != 0
        window.left -= size
        if window.left <= window.low:
            self._open_window()
        if flags & frames.PADDED:
            data = frames.strip_padding(frame)
        if not data and not ended:
            self._floods.count_control()
        stream = self.streams.open.get(frame.stream)
        if stream is not None:
            fault = stream.receive(data, size, ended)
            if fault is not None:
                self._reset(stream, fault)
        elif self._was_opened(frame) and not self.streams.take_rest(frame.stream, ended=ended):
            self._floods.count_control()
            self.outbox.send(frames.encode_reset(frame.stream, ErrorCode.STREAM_CLOSED))

    def _open_window(self) -> None:
        """Let the peer send more: what has come waits for nobody."""
        if self._receive_window.left < 0:
            message = "more than the connection's window"
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, message)
        self.outbox.send(frames.encode_window_update(0, self._receive_window.open_for()))

    def _on_headers(self, frame: Frame) -> None:
        if not frame.stream & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        self._take_block(self._blocks.begin(frame))

    def _on_continuation(self, frame: Frame) -> None:
        self._take_block(self._blocks.go_on(frame))

    def _take_block(self, block: HeaderBlock | None) -> None:
        if block is None:
            self._steps = self._STEPS_INSIDE_BLOCK
            return
        self._steps = self._STEPS
        if block.stream > self.streams.last:
            self._on_request(block)
        else:
            self._on_trailers(block)

    def _on_request(self, block: HeaderBlock) -> None:
        try:
            head = self._blocks.read_head(block)
            if not self._accepting:
                return
            self.streams.last = block.stream
            if self.streams.full:
                self._reject(block, ErrorCode.REFUSED_STREAM)
                return
            windows = self._limits.stream_window, self.peer.stream_window
            stream = Stream(block.stream, head, self, windows, self._limits.message_bytes)
        except RequestMalformed:
            self.streams.last = block.stream
            self._reject(block, ErrorCode.PROTOCOL_ERROR)
            return
        fault = stream.receive(b"", 0, ended=True) if block.ended else None
        if fault is not None:
            self._reject(block, fault)
            return
        self.streams.open[block.stream] = stream
        self.turns.begin(self._begin, stream)

    def _begin(self, stream: Stream) -> None:
        if self.streams.open.get(stream.id) is stream:
            self._start(stream)

    def _reject(self, block: HeaderBlock, code: ErrorCode) -> None:
        self._floods.count_control()
        if not block.ended:
            self.streams.expect_rest(block.stream)
        self.outbox.send(frames.encode_reset(block.stream, code))

    def _on_trailers(self, block: HeaderBlock) -> None:
        self._blocks.read_trailers(block)
        stream = self.streams.open.get(block.stream)
        if stream is None:
            if not self.streams.take_rest(block.stream, ended=block.ended):
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "headers on a stream that is over")
            self._floods.count_control()
            return
        fault = stream.receive(b"", 0, ended=True) if block.ended else ErrorCode.PROTOCOL_ERROR
        if fault is not None:
            self._reset(stream, fault)

    def _on_reset(self, frame: Frame) -> None:
        frames.read_number(frame.payload)
        stream = self._find(frame)
        if stream is None:
            # Envoy resets most of its streams once they are over, but no stream twice.
            if not self.streams.take_rest(frame.stream, ended=True):
                self._floods.count_control()
            return
        if not stream.answered:
            self._floods.count_reset()
        stream.ended = True
        stream.abandon()
        self.forget(stream)

    def _on_first(self, frame: Frame) -> None:
        if frame.flags & frames.ACK:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings must come first")
        self._steps = self._STEPS
        self._on_settings(frame)

    def _on_settings(self, frame: Frame) -> None:
        frames.check_whole(frame)
        if frame.flags & frames.ACK:
            if frame.payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an answer with settings")
            self._floods.count_control()
            return
        self._resize_windows(self.peer.apply(frame.payload))
        self._answer(frames.encode_frame(frames.SETTINGS, frames.ACK, 0))

    def _resize_windows(self, growth: int) -> None:
        if not growth:
            return
        try:
            for stream in self.streams.open.values():
                stream.window.grow(growth)
                stream.wake()
        except WindowExceeded as exceeded:
            message = "a window of 2 GiB and more"
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, message) from exceeded

    def _on_ping(self, frame: Frame) -> None:
        frames.check_whole(frame)
        if len(frame.payload) != len(_DRAINING):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a ping is not of eight bytes")
        if not frame.flags & frames.ACK:
            self._answer(frames.encode_frame(frames.PING, frames.ACK, 0, frame.payload))
        elif frame.payload == _DRAINING and "drain" in self._timers:
            self._stop_accepting()
        else:
            self._floods.count_control()

    def _on_goaway(self, frame: Frame) -> None:
        frames.check_whole(frame)  # Its streams are still served; then it closes itself.
        self._floods.count_control()

    def _on_priority(self, frame: Frame) -> None:
        frames.check_priority(frame)
        self._floods.count_control()

    def _on_window_update(self, frame: Frame) -> None:
        increment = frames.read_number(frame.payload) & frames.MAX_WINDOW
        self._floods.count_window_update()
        stream = self._find(frame) if frame.stream else None
        if frame.stream and stream is None:
            if not increment:
                self._floods.count_control()
                self.outbox.send(frames.encode_reset(frame.stream, ErrorCode.PROTOCOL_ERROR))
            return
        window: SendWindow = self.window if stream is None else stream.window
        fault = window.take(increment)
        if fault is not None and stream is None:
            raise ConnectionFault(fault, "an impossible window update")
        if fault is not None and stream is not None:
            self._reset(stream, fault)
        elif stream is None:
            self.window.pass_turn()
        else:
            stream.wake()

    def _on_unknown(self, frame: Frame) -> None:
        """Pass over a frame of a type that is unknown (RFC 9113, section 5.5)."""
        del frame
        self._floods.count_control()

    _STEPS: ClassVar[Sequence[Step["Connection"]]] = tabulate(
        {
            frames.DATA: _on_data,
            frames.HEADERS: _on_headers,
            frames.PRIORITY: _on_priority,
            frames.RST_STREAM: _on_reset,
            frames.SETTINGS: _on_settings,
            frames.PUSH_PROMISE: refuse("a client cannot push"),
            frames.PING: _on_ping,
            frames.GOAWAY: _on_goaway,
            frames.WINDOW_UPDATE: _on_window_update,
            frames.CONTINUATION: refuse("a continuation of nothing"),
        },
        _on_unknown,
    )
    """What is done with a frame, by its type."""
    _FIRST_STEPS: ClassVar[Sequence[Step["Connection"]]] = tabulate(
        {frames.SETTINGS: _on_first}, refuse("settings must come first")
    )
    _STEPS_INSIDE_BLOCK: ClassVar[Sequence[Step["Connection"]]] = tabulate(
        {frames.CONTINUATION: _on_continuation}, refuse("a frame inside a header block")
    )

    def _find(self, frame: Frame) -> Stream | None:
        """Return the stream of a frame; None if it is over."""
        stream = self.streams.open.get(frame.stream)
        if stream is None:
            self._was_opened(frame)
        return stream

    def _was_opened(self, frame: Frame) -> bool:
        """Return whether there was the stream of a frame, or if not, the peer may think so.

        Raises:
            ConnectionFault: there was none.
        """
        if frame.stream <= self.streams.last and frame.stream & 1:
            return True
        if frame.stream & 1 and not self._accepting:
            return False  # It was opened after we had said that there must be no more.
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on a stream never opened")

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        if not stream.answered:
            self._floods.count_reset()  # Who makes us reset it has given it up as well.
        self.outbox.send(frames.encode_reset(stream.id, code))
        stream.abandon()
        self.forget(stream)

    def _answer(self, frame: bytes) -> None:
        self._floods.count_answer(read=self.window.writing)
        self.outbox.send(frame)
