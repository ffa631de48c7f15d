"""Media in chats: what identifies them, and what stands for those that another engine encodes."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.refusal import malformed

EMBEDS_OF: Mapping[str, str] = {
    "image_url": "image_embeds",
    "audio_url": "audio_embeds",
    "input_audio": "audio_embeds",
    "video_url": "video_embeds",
}
"""The type of part that stands for an encoded one, by the type of the latter."""

_SIZE_MEMBERS: Mapping[str, str] = {
    "image_embeds": "image_grid_thw",
    "audio_embeds": "audio_num_tokens",
    "video_embeds": "video_grid_thw",
}
"""What a model must know of media that it does not get, to leave room for them."""


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One item of a chat.

    Attributes:
        part: The content part.
        key: What identifies it to the engine: vLLM's `mm_hash`.
        is_raw: Whether it is the medium itself, not what stands for an encoded one.
    """

    part: Mapping[str, Any]
    key: str
    is_raw: bool

    @property
    def embeds_type(self) -> str:
        """The type of part that stands for it once it is encoded."""
        return EMBEDS_OF[self.part["type"]] if self.is_raw else str(self.part["type"])

    @property
    def metadata(self) -> object:
        """What a part says that stands for an encoded item."""
        return self.part.get(self.embeds_type)


def list_media(members: Members) -> list[MediaItem]:
    """Return the media of a chat, in order.

    As in vLLM the key is the `uuid` of the part, if it has one, or made of its content; options of
    the processor change it, since they change what comes of the medium.

    Raises:
        Refused: A part that stands for an encoded item has no `uuid`.
    """
    return [_read_item(part, members) for part in list_parts(members) if _is_medium(part)]


def list_parts(members: Members) -> Iterator[Mapping[str, Any]]:
    """Give all content parts of a chat."""
    messages = members.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part


def content_key(part: Mapping[str, Any]) -> str:
    """Return what is made of a medium's content alone."""
    kept = {name: value for name, value in part.items() if name != "uuid"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def describe_size(item: MediaItem) -> dict[str, list[float]]:
    """Return the metadata of an item, as an encoder finds them: the same for the same content.

    Those of videos have times too, some of them whole seconds, which are no integers.
    """
    digest = bytes.fromhex(content_key(item.part))
    height, width = 16 + digest[0] % 48, 16 + digest[1] % 48
    name = _SIZE_MEMBERS[item.embeds_type]
    if name == "audio_num_tokens":
        return {name: [height * width]}
    if name == "image_grid_thw":
        return {name: [1, height, width]}
    frames = 1 + digest[2] % 16
    return {name: [frames, height, width], "timestamps": [frame / 2 for frame in range(frames)]}


def count_tokens(item: MediaItem) -> int:
    """Return how many tokens of a prompt an item takes."""
    return math.prod(map(int, describe_size(item)[_SIZE_MEMBERS[item.embeds_type]])) // 4


def is_metadata(item: MediaItem) -> bool:
    """Say whether a part that stands for an encoded item says how large it is.

    It is one flat list of numbers: an engine stacks the items of a request by itself.
    """
    metadata = item.metadata
    if not isinstance(metadata, dict):
        return False
    sizes = metadata.get(_SIZE_MEMBERS[item.embeds_type])
    return isinstance(sizes, list) and bool(sizes) and all(type(size) is int for size in sizes)


def _is_medium(part: Mapping[str, Any]) -> bool:
    return part.get("type") in EMBEDS_OF or part.get("type") in _SIZE_MEMBERS


def _read_item(part: Mapping[str, Any], members: Members) -> MediaItem:
    is_raw = part["type"] in EMBEDS_OF
    name = part.get("uuid")
    if name is None and not is_raw:
        raise malformed(f"{part['type']} has no uuid", "messages")
    key = content_key(part) if name is None else str(name)
    options = members.get("mm_processor_kwargs")
    if options:
        key = hashlib.sha256(json.dumps([key, options], sort_keys=True).encode()).hexdigest()
    return MediaItem(part, key, is_raw)
