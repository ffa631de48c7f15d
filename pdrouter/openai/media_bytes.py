"""How much of a prompt is what its media hold: bytes that say little of its tokens."""

from contextlib import suppress

from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.json_walk import OBJECT, JsonInvalid, list_items, read_mark
from pdrouter.openai.media import MAX_PARTS

_LIST = ord("[")
_DEPTH = 3
"""Messages, their parts, and the parts of a tool's result."""
_EMBEDDED = "prompt_embeds"
_HELD = (
    "image_url",
    "image_pil",
    "image_embeds",
    "input_audio",
    "audio_url",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "file",
    "file_data",
    _EMBEDDED,
)
"""Members of parts that hold a medium: no engine reads them as text."""
_TEXTS = (b'"text"', b'"input_text"', b'"output_text"')


def measure_media(body: Body, name: str) -> int:
    """Return how many bytes of a prompt are what its media hold.

    What is text to an engine is none of it, whatever it looks like; nor is what stands behind so
    many parts that nobody looks at them.

    Args:
        body: the request.
        name: the member that is the prompt.
    """
    prompt = body.view(name) or memoryview(b"")
    if name == _EMBEDDED:
        return len(prompt)
    search = _Search()
    # What is nested too deeply, or has too many members, is no medium that an engine takes.
    with suppress(_TooMany, BodyInvalid, JsonInvalid, RecursionError):
        search.look(prompt, _DEPTH)
    return search.found


class _TooMany(Exception):
    """There are more parts than are looked at."""


class _Search:
    """Adds up what media hold.

    Attributes:
        found: bytes of it so far.
    """

    __slots__ = ("_left", "found")

    def __init__(self) -> None:
        self.found = 0
        self._left = MAX_PARTS

    def look(self, value: memoryview, depth: int) -> None:
        """Look at a message or a part, or at each of a list."""
        mark = read_mark(value, 0)
        if mark == OBJECT:
            self._look_at_part(Body(bytes(value)), depth)
        elif mark == _LIST and depth:
            for item in list_items(value):
                self.look(item, depth - 1)

    def _look_at_part(self, part: Body, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMany
        if part.raw("type") not in _TEXTS:
            self.found += sum(len(part.view(name) or b"") for name in _HELD)
            self.found += _measure_source(part.raw("source") or b"")
        for name in ("content", "output"):
            held = part.view(name)
            if held is not None:
                self.look(held, depth)


def _measure_source(source: bytes) -> int:
    """Return the bytes of Anthropic's images and documents; the source of these may be a text."""
    is_medium = source.startswith(b"{") and Body(source).raw("type") == b'"base64"'
    return len(source) if is_medium else 0
