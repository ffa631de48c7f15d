"""The HTTP/2 server whatever comes: nothing breaks, nothing is left, limits hold."""

from pathlib import Path

import pytest
from hpack import Encoder
from http2_abuse import abuse, try_one
from http2_peer import HEADERS
from hypothesis import example, given, settings
from hypothesis import strategies as st

_SEEDS = Path(__file__).parents[1] / "data" / "http2"

many = settings(max_examples=150)

_BLOCK: bytes = Encoder().encode(HEADERS)
_CALL = bytes([1, 4, 1]) + bytes([len(_BLOCK)]) + _BLOCK

frame = st.builds(
    lambda kind, flags, stream, payload: bytes([kind, flags, stream, len(payload)]) + payload,
    st.integers(0, 10),
    st.sampled_from((0, 1, 4, 5, 8, 0x20, 0x2D)) | st.integers(0, 255),
    st.integers(0, 15),
    st.sampled_from((b"", b"\0\0\0\x01", b"\0" * 8, b"\0\0\0\0\x05hello", b"\0\4\0\0\0\0"))
    | st.binary(max_size=255),
)


@many
@given(st.binary(min_size=2, max_size=2), st.lists(frame | st.just(_CALL), max_size=60))
@example(b"\0\0", [_CALL] * 20)
def test_any_sequence_of_frames_is_survived(how: bytes, sent: list[bytes]) -> None:
    abuse(how + _CALL + b"".join(sent), raw=False)


@many
@given(st.binary(max_size=400))
def test_any_bytes_are_survived(data: bytes) -> None:
    abuse(data, raw=True)


@pytest.mark.parametrize("file", sorted(_SEEDS.iterdir()), ids=lambda file: file.name)
def test_what_fuzzing_begins_with_is_survived(file: Path) -> None:
    try_one(file.read_bytes())
