"""Whether a prompt has parts that are no text: images, sound, videos, files."""

import msgspec

_MEDIA_TYPES = frozenset(
    {
        "image",
        "image_url",
        "image_pil",
        "image_embeds",
        "input_image",
        "computer_screenshot",
        "audio",
        "audio_url",
        "audio_embeds",
        "input_audio",
        "video",
        "video_url",
        "video_embeds",
        "input_video",
        "file",
        "input_file",
        "container_upload",
        "document",
    }
)
_ABSENT = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")
_NO_KEYS = (_ABSENT,) * 9
_DEPTH = 3
"""Messages, their parts, and the parts of a tool's result."""


class _Part(msgspec.Struct):
    """A message, an item or a part of one, as far as it may be or hold media.

    Engines need no `type`: they also tell a part by its key. One that has been sent before may be
    given by its `uuid` alone, with null under the key.
    """

    type: str | None = None
    uuid: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    image_url: msgspec.Raw = _ABSENT
    image_pil: msgspec.Raw = _ABSENT
    image_embeds: msgspec.Raw = _ABSENT
    input_audio: msgspec.Raw = _ABSENT
    audio_url: msgspec.Raw = _ABSENT
    audio_embeds: msgspec.Raw = _ABSENT
    video_url: msgspec.Raw = _ABSENT
    video_embeds: msgspec.Raw = _ABSENT
    file: msgspec.Raw = _ABSENT

    def is_media(self) -> bool:
        """Return whether the part is no text."""
        if self.type in _MEDIA_TYPES:
            return True
        keys = (
            self.image_url,
            self.image_pil,
            self.image_embeds,
            self.input_audio,
            self.audio_url,
            self.audio_embeds,
            self.video_url,
            self.video_embeds,
            self.file,
        )
        if keys == _NO_KEYS:
            return False
        # Clients that write every member of a type they know have text with an empty `image_url`.
        known = self.uuid not in (_ABSENT, _NULL)
        return any(value is not _ABSENT and (known or value != _NULL) for value in keys)


_decode_parts = msgspec.json.Decoder(list[_Part | str]).decode


def has_media(prompt: memoryview) -> bool:
    """Return whether a prompt, a JSON value, has images, sound, videos or files."""
    try:
        return _has_media(prompt, _DEPTH)
    except msgspec.ValidationError:
        # Not the shape of messages: the engine says what is wrong with it.
        return False


def _has_media(parts: memoryview, depth: int) -> bool:
    # Texts are skipped, not read: this costs less than to search them.
    if not depth or bytes(parts[:1]) != b"[":
        return False
    return any(
        part.is_media()
        or _has_media(memoryview(part.content), depth - 1)
        or _has_media(memoryview(part.output), depth - 1)
        for part in _decode_parts(parts)
        if isinstance(part, _Part)
    )
