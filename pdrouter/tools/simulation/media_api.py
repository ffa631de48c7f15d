"""The APIs of sound, images and videos: what they give is next to empty, but can be opened."""

import base64
import struct
import time
import zlib
from email import message_from_bytes
from typing import Final

from aiohttp import web

from pdrouter.tools.simulation.answers import DONE, MADE_UP, event
from pdrouter.tools.simulation.api_requests import check_model
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.reception import EngineCall, is_form
from pdrouter.tools.simulation.refusal import malformed

TRANSCRIPTIONS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")
SPEECH: Final = "/v1/audio/speech"
EDITS: Final = ("/v1/images/edits", "/v1/images/variations")
GENERATIONS: Final = ("/v1/images/generations", "/v1/video/generations")
MEDIA_PATHS: Final = (*TRANSCRIPTIONS, SPEECH, *EDITS, *GENERATIONS)

_SAMPLES_PER_S = 16_000


class MediaApi:
    """Serves transcriptions, translations, speech, images and videos."""

    def __init__(self, config: EngineConfig, compute: Compute) -> None:
        self._config = config
        self._compute = compute

    async def serve(self, call: EngineCall) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refused: A member or field is missing, or the model is not served.
        """
        path, members = call.http.path, call.members
        if is_form(call.http):
            members = read_form(await call.http.read(), call.http.headers["content-type"])
        _require(members, _NEEDED[path])
        model = check_model(members, self._config)
        async with self._compute.prefilled(1):
            if path in TRANSCRIPTIONS:
                return await _transcribe(call.http, members, model)
            if path == SPEECH:
                return web.Response(body=_silence(), content_type="audio/wav")
            image = base64.b64encode(_pixel()).decode()
            return web.json_response({"created": int(time.time()), "data": [{"b64_json": image}]})


_NEEDED = {
    **dict.fromkeys(TRANSCRIPTIONS, "file"),
    SPEECH: "input",
    **dict.fromkeys(EDITS, "image"),
    **dict.fromkeys(GENERATIONS, "prompt"),
}


def read_form(body: bytes, content_type: str) -> Members:
    """Read a multipart form: texts of fields, and bytes of files."""
    message = message_from_bytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + body)
    members: dict[str, object] = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            members[name] = content if part.get_filename() else content.decode(errors="replace")
    return members


def _require(members: Members, name: str) -> None:
    # Lists of files have their name with brackets.
    if not (members.get(name) or members.get(f"{name}[]")):
        raise malformed("Field required", name)


async def _transcribe(http: web.Request, members: Members, model: str) -> web.StreamResponse:
    words = ("This", " transcript", " is", " made", " up.")
    text = "".join(words)
    if str(members.get("stream")).lower() in ("true", "1"):
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        for word in words:
            choice = {"delta": {"content": word}, "finish_reason": None}
            chunk = {"object": "transcription.chunk", "model": model, "choices": [choice]}
            await response.write(event(chunk))
        await response.write(DONE)
        return response
    if members.get("response_format") == "text":
        return web.Response(text=text)
    size = members.get("file")
    seconds = len(size) / _SAMPLES_PER_S / 2 if isinstance(size, bytes) else 0
    return web.json_response({"text": text, "usage": {"type": "duration", "seconds": seconds}})


def _silence() -> bytes:
    """Give a tenth of a second of silence, as a WAV file."""
    samples = bytes(_SAMPLES_PER_S // 10 * 2)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _SAMPLES_PER_S, _SAMPLES_PER_S * 2, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def _pixel() -> bytes:
    """Give an image of one grey pixel, as a PNG file that says what it is."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"tEXt", b"Comment\0" + MADE_UP.encode()),
        (b"IDAT", zlib.compress(b"\0\x80")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
