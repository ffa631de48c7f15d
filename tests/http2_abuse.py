"""What must hold of the HTTP/2 server whatever bytes come: for hypothesis, and for atheris."""

import asyncio
from struct import unpack_from

from http2_peer import START, Service, settle

from pdrouter.extproc.http2 import frames
from pdrouter.extproc.http2.limits import Limits, Rate
from pdrouter.extproc.http2.stream import END, Stream

STRICT = Limits(
    message_bytes=4_096,
    streams=8,
    header_list_bytes=1_024,
    stream_window=2_048,
    connection_window=70_000,
    control=Rate(50, 0),
    resets=Rate(20, 0),
    window_updates=Rate(200, 0),
    unread_answers=5,
    keepalive_s=3600.0,
    closing_s=0.0,
)

_KINDS = 11
_STREAMS = 16


def spell_frames(data: bytes) -> bytes:
    """Return frames as arbitrary bytes describe them: most are well-formed, and on few streams.

    Each begins with four bytes: its kind, flags, stream, and how many of the next are its payload.
    """
    spelled, at = [], 0
    while len(data) - at >= 4:
        kind, flags, stream, size = unpack_from("4B", data, at)
        at += 4
        payload = data[at : at + size]
        at += size
        spelled.append(frames.encode_frame(kind % _KINDS, flags, stream % _STREAMS, payload))
    return b"".join(spelled)


async def _echo(stream: Stream) -> None:
    while (message := await stream.read()) is not END:
        await stream.write(message)


async def _abuse(sent: bytes, cut: int, *, stalled: bool) -> None:
    service = Service.create(STRICT, _echo)
    connection = service.connection
    for part in (sent[:cut], sent[cut:]):
        service.feed(part)
        if stalled:
            connection.pause_writing()
        await settle()
        open_streams = connection.streams.open
        assert len(open_streams) <= STRICT.streams
        for stream in open_streams.values():
            messages = stream._messages
            kept = sum(map(len, messages._pieces)) + len(messages._lone or b"")
            assert kept - messages._start <= STRICT.stream_window
            assert messages._start <= 2 * frames.DEFAULT_FRAME_BYTES
    written = await service.read_frames()
    goodbyes = [frame for frame in written if frame.kind == frames.GOAWAY]
    assert len(goodbyes) <= 1
    assert service.pipe.closed == bool(goodbyes)
    assert all(len(frame.payload) <= frames.DEFAULT_FRAME_BYTES for frame in written)
    service.lose()
    await settle()
    assert not connection.streams.open
    assert not service.server._tasks


def abuse(data: bytes, *, raw: bool) -> None:
    """Feed a server with bytes, and check that nothing of it breaks or is left.

    Args:
        data: two bytes that say how, and the rest.
        raw: whether the rest is sent as it is, and not as the frames that it describes.
    """
    how, data = data[:2].ljust(2, b"\0"), data[2:]
    sent = START + (data if raw else spell_frames(data))
    asyncio.run(_abuse(sent, how[0] * len(sent) // 255, stalled=bool(how[1] & 1)))


def try_one(data: bytes) -> None:
    """Try what a fuzzer gives: raw bytes or frames, as the first byte says."""
    if data:
        abuse(data[1:], raw=data[0] < 64)
