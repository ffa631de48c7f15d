"""Engines' own errors, as far as people want to read them."""

import msgspec

_LONGEST_BODY = 64 * 1024
_LONGEST_MESSAGE = 300


class _Error(msgspec.Struct):
    message: str = ""


class _Envelope(msgspec.Struct):
    error: _Error | str | None = None
    message: str = ""
    detail: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(_Envelope).decode


def read_error_message(body: bytes) -> str:
    """Return what an engine's error says, in one line and cut to a few hundred characters.

    It stands in `error.message` (vLLM), `message` (SGLang) or `detail` (what their web framework
    refuses by itself). What is none of these is shown as it is, if it is text.
    """
    try:
        envelope = _decode(body[:_LONGEST_BODY])
        said = envelope.error.message if isinstance(envelope.error, _Error) else envelope.error
        said = said or envelope.message or bytes(envelope.detail).decode().strip('"')
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        said = body[: 4 * _LONGEST_MESSAGE].decode(errors="replace")
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}..."
