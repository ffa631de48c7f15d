"""Where JSON values stand in bytes, found at C speed: nothing is taken apart on the way."""

import re
from collections.abc import Callable, Iterator

import msgspec
from msgspec import DecodeError

_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_SPACE = re.compile(rb"[ \t\n\r]*+")
_WHITE_SPACE = b" \t\n\r"
_SPACE_BYTE = ord(" ")
_TRAILING = "JSON is malformed: trailing characters (byte "
_BYTE = re.compile(r"\(byte (\d+)\)")
_TOO_DEEP = "nested too deeply"
_TRUNCATED = "Input data was truncated"
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


COMMA, COLON, QUOTE, OBJECT, _LIST_END = b',:"{]'


class JsonInvalid(ValueError):
    """The bytes are not valid JSON, or not to be read; the message says why."""


def find_end(
    view: memoryview, start: int, decode: Callable[[memoryview], object] = _decode_raw
) -> tuple[int, int]:
    """Return where the value that starts here ends, and where what follows it stands.

    msgspec walks the value and complains of what stands behind it: so it tells where that is.

    Args:
        view: the bytes.
        start: where the value starts.
        decode: walks it; another than the usual one may expect a value of some type.

    Raises:
        JsonInvalid: there is no valid value, or not such a one, or nothing behind it.
    """
    try:
        decode(view[start:])
    except (DecodeError, UnicodeError) as error:
        text = str(error)
        if not text.startswith(_TRAILING):
            raise _place(error, view, start) from None
    except RecursionError:
        raise JsonInvalid(_TOO_DEEP) from None
    else:
        raise JsonInvalid("input data was truncated")
    end = after = start + int(text[len(_TRAILING) : -1]) - 1
    if view[after - 1] in _WHITE_SPACE:
        end = start + len(bytes(view[start:after]).rstrip(_WHITE_SPACE))
    return end, after


def skip_space(view: memoryview, start: int) -> int:
    """Return where white space that may stand here ends."""
    if start < len(view) and view[start] > _SPACE_BYTE:
        return start
    space = _SPACE.match(view, start)
    return start if space is None else space.end()


def read_mark(view: memoryview, position: int) -> int:
    """Return the byte that stands there; -1 behind the end."""
    return view[position] if position < len(view) else -1


def check_json(view: memoryview) -> None:
    """Check that the bytes are one JSON value.

    Raises:
        JsonInvalid: they are not.
    """
    try:
        _decode_raw(view)
    except (DecodeError, UnicodeError) as error:
        raise _place(error, view, 0) from None
    except RecursionError:
        raise JsonInvalid(_TOO_DEEP) from None


def list_items(view: memoryview) -> Iterator[memoryview]:
    """Yield the items of a valid JSON list. Each is a step: who asks is to stop in time."""
    for start, end in list_spans(view, 0):
        yield view[start:end]


def list_spans(view: memoryview, start: int) -> Iterator[tuple[int, int]]:
    """Yield where the items of a valid JSON list start and end, as `list_items` does.

    Args:
        view: bytes, the last of which ends the list.
        start: where it starts.
    """
    position = skip_space(view, start + 1)
    if read_mark(view, position) == _LIST_END:
        return
    mark = COMMA
    while mark == COMMA:
        end, after = find_end(view, position)
        yield position, end
        mark = read_mark(view, after)
        position = skip_space(view, after + 1)


def invalid_character(position: int) -> JsonInvalid:
    """Return the error for what must not stand there."""
    return JsonInvalid(f"invalid character (byte {position})")


def _place(error: Exception, view: memoryview, start: int) -> JsonInvalid:
    """Return msgspec's error about a part of the bytes, as one about all of them."""
    text = str(error).removeprefix("JSON is malformed: ")
    if text == _TRUNCATED and (half := _HALF_PAIR.search(view, start)) is not None:
        # What cuts texts without regard to emojis leaves it, and msgspec waits for its other half.
        return JsonInvalid(f"half of a surrogate pair (byte {half.start()})")
    return JsonInvalid(_BYTE.sub(lambda byte: f"(byte {start + int(byte[1])})", text))
