"""Multipart forms: which fields are found in them, and what is refused."""

from contextlib import suppress
from typing import Any

import httpx
import pytest
from factories import make_request
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, whole_body
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.form import Form, FormInvalid, is_form, parse_form
from pdrouter.openai.paths import ENDPOINTS, Forms
from pdrouter.openai.request import InferenceRequest, parse_request

AUDIO = "/v1/audio/transcriptions"
TYPE = "multipart/form-data; boundary=b"
NAMES = frozenset({"model", "stream"})


def write_part(name: str, content: bytes, more: str = "") -> bytes:
    head = f'content-disposition: form-data; name="{name}"{more}\r\n\r\n'
    return b"--b\r\n" + head.encode() + content + b"\r\n"


FILE = write_part("file", b"\x00\xff--b\r\n--c\r\n-", '; filename="model"')
MODEL = write_part("model", b"whisper")
END = b"--b--\r\n"


def read(data: bytes, content_type: str = TYPE) -> str | None:
    return parse_form(data, content_type, NAMES).read("model")


def parse(data: bytes, content_type: str = TYPE, path: str = AUDIO) -> InferenceRequest:
    return parse_request(
        ENDPOINTS[path],
        "",
        data,
        transfer_members=TRANSFER_MEMBERS,
        split_multimodal=False,
        content_type=content_type,
    )


_READABLE: dict[str, tuple[bytes, str]] = {
    "model first": (MODEL + FILE + END, TYPE),
    "model last": (FILE + MODEL + END, TYPE),
    "quoted boundary": (MODEL + END, 'multipart/form-data; boundary="b"'),
    "boundary with a semicolon": (
        (MODEL + END).replace(b"--b", b"--b;c"),
        'multipart/form-data; boundary="b;c"',
    ),
    "escaped boundary": (MODEL + END, 'multipart/form-data; boundary="\\b"'),
    "type in capitals": (MODEL + END, "Multipart/Form-Data; charset=utf-8; Boundary=b"),
    "boundary in another parameter": (
        MODEL + END,
        'multipart/form-data; x="; boundary=c"; boundary=b',
    ),
    "preamble": (b"This is a form.\r\n" + MODEL + END, TYPE),
    "epilogue": (MODEL + END + b"and that was it\r\n--b\r\n", TYPE),
    "no line after the end": (MODEL + b"--b--", TYPE),
    "padded delimiters": (MODEL.replace(b"--b", b"--b \t") + END, TYPE),
    "line feeds alone": ((MODEL + FILE + END).replace(b"\r\n", b"\n"), TYPE),
    "line feeds in the content": (write_part("file", b"\n--b\n\r--b") + MODEL + END, TYPE),
    "boundary inside a line": (write_part("file", b"x--b\r\n") + MODEL + END, TYPE),
    "beginning of a longer line": (write_part("file", b"\r\n--bc\r\n") + MODEL + END, TYPE),
    "other headers": (
        MODEL.replace(b"content-dis", b"Content-Type: text/plain\r\nCONTENT-Dis") + END,
        TYPE,
    ),
    "unquoted name": (MODEL.replace(b'"model"', b"model") + END, TYPE),
    "escaped name": (MODEL.replace(b'"model"', b'"mo\\del"') + END, TYPE),
    "name within a file's name": (
        write_part("file", b"x", "; filename=\"a; name=model\"; filename*=utf-8''name%3Dmodel")
        + MODEL
        + END,
        TYPE,
    ),
    "a file of that name": (write_part("model", b"x", '; filename="m"') + MODEL + END, TYPE),
    "empty part": (
        b"--b\r\ncontent-disposition: form-data; name=x\r\n\r\n\r\n" + MODEL + END,
        TYPE,
    ),
}


@pytest.mark.parametrize(("data", "content_type"), _READABLE.values(), ids=_READABLE)
def test_the_model_is_found(data: bytes, content_type: str) -> None:
    assert is_form(content_type)
    assert read(data, content_type) == "whisper"


_WITHOUT_MODEL: dict[str, bytes] = {
    "no such field": FILE + END,
    "only a file of that name": write_part("model", b"x", '; filename="m"') + END,
    "only an encoded name": write_part("model", b"x", "; filename*=utf-8''m") + END,
    "another case": write_part("Model", b"x") + END,
    "not ended": FILE + MODEL,
    "not even by a delimiter": FILE + MODEL + b"--bc",
    "after the end": FILE + END + MODEL + END,
    "inside a file": write_part("file", MODEL.replace(b"\r\n", b"\n")) + END,
}


@pytest.mark.parametrize("data", _WITHOUT_MODEL.values(), ids=_WITHOUT_MODEL)
def test_what_is_no_field_of_that_name_is_not_taken_for_one(data: bytes) -> None:
    assert read(data) is None
    with pytest.raises(RequestRejected) as rejected:
        parse(data)
    assert (rejected.value.status, rejected.value.param) == (400, "model")


_BROKEN: dict[str, tuple[bytes, str, str | None]] = {
    "no boundary": (MODEL + END, "multipart/form-data", None),
    "an empty boundary": (MODEL + END, "multipart/form-data; boundary=", None),
    "two boundaries": (MODEL + END, TYPE + "; boundary=c", None),
    "another boundary": (MODEL + END, "multipart/form-data; boundary=c", None),
    "a longer boundary": (MODEL + END, TYPE + "c", None),
    "nothing": (b"", TYPE, None),
    "only the end": (END, TYPE, None),
    "no parts": (b"some text", TYPE, None),
    "a part without an end of its header": (b"--b\r\n" + b"x: y\r\n" * 9, TYPE, None),
    "a long header": (b"--b\r\nx: " + b"y" * 9000 + b"\r\n\r\n" + MODEL + END, TYPE, None),
    "no name": (b"--b\r\n\r\nx\r\n" + MODEL + END, TYPE, None),
    "two headers with names": (
        MODEL.replace(b"\r\n\r\n", b'\r\ncontent-disposition: form-data; name="x"\r\n\r\n') + END,
        TYPE,
        None,
    ),
    "two names": (MODEL.replace(b'"model"', b'"model"; name="x"') + END, TYPE, None),
    "too many parts": (write_part("x", b"") * 300 + MODEL + END, TYPE, None),
    "two models": (MODEL + FILE + write_part("model", b"x") + END, TYPE, "model"),
    "no UTF-8": (write_part("model", b"\xff") + END, TYPE, "model"),
}


@pytest.mark.parametrize(("data", "content_type", "param"), _BROKEN.values(), ids=_BROKEN)
def test_a_form_that_engines_may_read_otherwise_is_refused(
    data: bytes, content_type: str, param: str | None
) -> None:
    with pytest.raises(RequestRejected) as rejected:
        parse(data, content_type)
    code = "invalid_value" if param else "invalid_body"
    assert (rejected.value.status, rejected.value.code, rejected.value.param) == (400, code, param)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/mixed; boundary=b", "multipart/form-dataset; boundary=b"],
)
def test_a_path_that_takes_forms_alone_says_so(content_type: str) -> None:
    assert not is_form(content_type)
    with pytest.raises(RequestRejected) as rejected:
        parse(b'{"model":"m"}', content_type)
    assert (rejected.value.code, rejected.value.param) == ("invalid_content_type", "content-type")
    assert "multipart/form-data" in rejected.value.message


def test_a_path_that_takes_both_takes_both() -> None:
    path = "/v1/images/edits"
    assert parse(MODEL + FILE + END, path=path).model == "whisper"
    assert parse(b'{"model":"m"}', "application/json", path=path).model == "m"


def test_elsewhere_a_form_is_no_json() -> None:
    with pytest.raises(RequestRejected) as rejected:
        parse(MODEL + END, path="/v1/embeddings")
    assert rejected.value.code == "invalid_body"


@pytest.mark.parametrize(
    ("text", "stream"),
    [("true", True), ("1", True), ("True", True), ("false", False), ("", False), ("maybe", False)],
)
def test_whether_the_answer_is_streamed_is_read(text: str, stream: bool) -> None:
    request = parse(MODEL + write_part("stream", text.encode()) + END)
    assert request.stream is stream
    assert request.whole == "single-pod-path"


@pytest.mark.parametrize("name", ["x", "prod/whisper-large-v3", "mödel"])
@pytest.mark.parametrize("stream_first", [False, True])
def test_a_renamed_model_is_all_that_changes_in_a_form(name: str, stream_first: bool) -> None:
    stream = write_part("stream", b"true")
    data = (stream + MODEL if stream_first else MODEL + stream) + FILE + END
    renamed = bytes(whole_body(parse(data).rename(name)))
    assert renamed == data.replace(b"whisper", name.encode())
    assert parse(renamed).model == name
    assert parse(renamed).stream


def test_a_form_passes_as_it_is() -> None:
    data = MODEL + write_part("kv_transfer_params", b'{"do_remote_prefill": true}') + FILE + END
    body = whole_body(parse(data))
    assert body.unchanged
    assert body.parts == (data,)


@given(st.binary(max_size=200), st.text(min_size=1, max_size=9), st.booleans())
def test_what_a_client_library_writes_is_read(content: bytes, model: str, last: bool) -> None:
    request = httpx.Request(
        "POST",
        "http://x",
        data={"model": model, "language": "en"},
        files={"file": ("name=model", content), "other": ("x", b"y")},
    )
    data, content_type = request.read(), request.headers["content-type"]
    form = parse_form(data, content_type, NAMES)
    assert form.read("model") == model.encode("utf-8", "surrogatepass").decode()
    assert form == Form(data, form.spans)


@pytest.mark.parametrize(
    "filler", [b"\r\n--b", b"\r\n--b\r\n", b"\r\n--bb", b"\r\n", b"-", b"--b" * 9, b"\n--b \t"]
)
def test_hostile_content_costs_few_operations(filler: bytes) -> None:
    data = write_part("file", filler * (2_000_000 // len(filler))) + MODEL + END
    searches = CountingBytes(data)
    with suppress(FormInvalid):
        parse_form(searches, TYPE, NAMES)
    assert searches.searches < 600


class CountingBytes(bytes):
    """Bytes that count how often they are searched."""

    searches = 0

    def find(self, *args: Any) -> int:
        self.searches += 1
        return super().find(*args)


def test_forms_are_for_single_pods() -> None:
    assert all(e.legs == 1 for e in ENDPOINTS.values() if e.forms is not Forms.NEVER)
    assert make_request("/v1/embeddings", input="x").form is None
