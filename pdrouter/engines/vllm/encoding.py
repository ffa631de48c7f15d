"""vLLM's EC connectors: what encode engines are sent, what they say, and what becomes of it.

Each item of a conversation that is no text is sent to an engine that encodes it. Its answer says
what stands for the item in the prompt (the grid of an image, for example) and where the others
fetch the rest. The engine that computes the prompt gets both, the one that decodes only the first.
Source: vLLM's `disagg_epd_proxy.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from pdrouter.engines.split import EnginePod, HandoffInvalid
from pdrouter.engines.vllm.nixl import is_unusable_host
from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.media_items import MediaItem, find_items, name_item, replace_parts
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.settings.choices import RemoteHostRewrite

EC_PARAMS = "ec_transfer_params"
"""The member by which EC connectors are told of a transfer."""

_PATH = "/v1/chat/completions"
_READING = ("mm_processor_kwargs", "media_io_kwargs")
"""Members by which a client says how media are read: what is encoded depends on them."""
_PASSED_ON = (*_READING, "priority")
_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null", b"{}")


class _Answer(msgspec.Struct):
    ec_transfer_params: msgspec.Raw = _ABSENT


class _Descriptor(msgspec.Struct):
    metadata: msgspec.Raw = _ABSENT
    peer_host: object = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_descriptor = msgspec.json.Decoder(_Descriptor).decode


class Encoded(NamedTuple):
    """What an engine says of an item that it has encoded.

    Attributes:
        metadata: what stands for it in the prompt; None if that needs the item itself.
        descriptors: where it is fetched, by the engines' own hash.
    """

    metadata: bytes | None
    descriptors: Mapping[str, bytes]

    def __len__(self) -> int:
        return len(self.metadata or b"") + sum(map(len, self.descriptors.values()))


class LegBodies(NamedTuple):
    """A request whose media are encoded, as the engines of the other legs get it.

    Attributes:
        prompt: for the one that computes the prompt.
        decode: for the one that decodes.
    """

    prompt: InferenceRequest
    decode: InferenceRequest


def may_have_items(request: InferenceRequest) -> bool:
    """Return whether a request is of the kind whose media can be encoded by others."""
    return request.endpoint.path == _PATH and request.form is None


def list_items(request: InferenceRequest) -> tuple[MediaItem, ...]:
    """Return the media of a request; none if not all of them can be encoded by others."""
    return find_items(request.body, request.prompt_name, _READING)


def write_body(request: InferenceRequest, item: MediaItem) -> Pieces:
    """Return the request by which one item is encoded.

    The engine generates nothing; the limit is for one that is no encoder, set up by mistake.
    """
    body = request.body
    part = name_item(body, item)
    options = b"".join(
        b',"%s":%s' % (name.encode(), value)
        for name in (_READING if request.ranked else _PASSED_ON)
        if (value := body.raw(name)) is not None
    )
    model = encode(request.engine_model or request.model)
    opening = b'{"model":%s,"messages":[{"role":"user","content":[' % model
    return Pieces((opening, *part.parts, b']}],"stream":false,"max_tokens":1%s}' % options))


def read_answer(
    item: MediaItem,
    body: bytes,
    pod: EnginePod,
    rewrite: RemoteHostRewrite = RemoteHostRewrite.AUTO,
) -> Encoded:
    """Return what the answer to such a request says.

    Args:
        item: the item.
        body: the answer.
        pod: who gave it.
        rewrite: when its own address takes the place of the one that it names.

    Raises:
        HandoffInvalid: it cannot be understood.
    """
    try:
        raw = bytes(_decode_answer(body).ec_transfer_params)
        if raw in _NOTHING:
            return Encoded(None, {})
        holder = Body(raw)
        descriptors = {name: _place(holder.raw(name) or b"", pod, rewrite) for name in holder.names}
        own = descriptors.get(item.digest)
        if own is None and len(descriptors) == 1:
            # The engine may have made a hash of its own of that, and of how it reads media.
            (own,) = descriptors.values()
        metadata = b"" if own is None else bytes(_decode_descriptor(own).metadata)
    except (BodyInvalid, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HandoffInvalid("ec-invalid", f"{EC_PARAMS}: {error}") from None
    if holder.duplicates:
        raise HandoffInvalid("ec-invalid", f"{EC_PARAMS}: a hash occurs twice")
    return Encoded(None if metadata in _NOTHING else metadata, descriptors)


def join(
    request: InferenceRequest, items: Sequence[MediaItem], encoded: Mapping[str, Encoded]
) -> LegBodies:
    """Return the request for the other legs, with what stands for its items.

    Args:
        request: the request.
        items: its items.
        encoded: what was said of them, by their digest.

    Raises:
        HandoffInvalid: engines do not agree.
    """
    union: dict[str, bytes] = {}
    for each in encoded.values():
        for name, descriptor in each.descriptors.items():
            if union.setdefault(name, descriptor) != descriptor:
                message = f"{EC_PARAMS}: two engines describe the same hash differently"
                raise HandoffInvalid("ec-conflict", message)
    replace = {
        (item.start, item.end): _write_part(request, item, encoded[item.digest].metadata)
        for item in items
    }
    name, body = request.prompt_name, request.body
    edits = {**request.edits, name: replace_parts(body, name, replace)}
    decode = request.with_edits(edits)
    if not union:
        return LegBodies(decode, decode)
    members = b",".join(b"%s:%s" % (encode(name), value) for name, value in union.items())
    return LegBodies(request.with_edits({**edits, EC_PARAMS: b"{%s}" % members}), decode)


def _write_part(request: InferenceRequest, item: MediaItem, metadata: bytes | None) -> Pieces:
    """Return what stands for an item, or itself, by the name under which it was encoded."""
    if metadata is None:
        return name_item(request.body, item)
    kind, digest = f"{item.kind}_embeds".encode(), item.digest.encode()
    return Pieces((b'{"type":"%s","%s":%s,"uuid":"%s"}' % (kind, kind, metadata, digest),))


def _place(descriptor: bytes, pod: EnginePod, rewrite: RemoteHostRewrite) -> bytes:
    """Return a descriptor with the address of its pod, where the one it has leads nowhere else."""
    host = _decode_descriptor(descriptor).peer_host
    if rewrite is RemoteHostRewrite.NEVER or not isinstance(host, str):
        return descriptor
    if rewrite is RemoteHostRewrite.AUTO and not is_unusable_host(host):
        return descriptor
    return bytes(Body(descriptor).edit({"peer_host": encode(pod.ip)}))
