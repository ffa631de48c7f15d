"""Multipart forms, such as recordings to transcribe come in: the few fields that the router reads.

The bytes of a form are not walked: delimiters are searched for, and there may be few of them.
"""

import re
from collections.abc import Iterator, Mapping

import msgspec

from pdrouter.openai.pieces import Pieces

_MAX_DELIMITERS = 256
_MAX_PART_HEADER = 4096
_MAX_CONTENT_TYPE = 1024
_MULTIPART = re.compile(r"multipart/form-data[ \t]*(?=;|$)", re.IGNORECASE)
_PARAMETER = re.compile(
    r';[ \t]*([^=;\s]++)[ \t]*+=[ \t]*+("(?:[^"\\]++|\\.)*+"|[^;\s]*+)', re.DOTALL
)
_DISPOSITION = re.compile(rb"(?:^|\n)content-disposition:[ \t]*form-data([^\r\n]*)", re.IGNORECASE)
_DELIMITER_END = re.compile(rb"(--)|[ \t]*(\r?\n)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class FormInvalid(ValueError):
    """A form cannot be read.

    Attributes:
        param: the field at fault; None where it is the form.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Form(msgspec.Struct, frozen=True):
    """A form, and where the text fields that the router reads stand in it.

    Attributes:
        data: the body.
        spans: where the value of a field starts and ends, by name.
    """

    data: bytes
    spans: Mapping[str, tuple[int, int]]

    def read(self, name: str) -> str | None:
        """Return the text of a field; None if it is absent.

        Raises:
            FormInvalid: it is no UTF-8.
        """
        span = self.spans.get(name)
        if span is None:
            return None
        try:
            return str(self.data[slice(*span)], "utf-8")
        except UnicodeDecodeError:
            raise FormInvalid(f"{name!r} is not valid UTF-8", name) from None

    def edit(self, replace: Mapping[str, str]) -> Pieces:
        """Return the form with other texts in fields that it has; all else stays as it is."""
        if not replace:
            return Pieces((self.data,), unchanged=True)
        view = memoryview(self.data)
        pieces: list[bytes | memoryview] = []
        position = 0
        for start, end, text in sorted((*self.spans[name], text) for name, text in replace.items()):
            pieces += [view[position:start], text.encode()]
            position = end
        return Pieces((*pieces, view[position:]))


def is_form(content_type: str) -> bool:
    """Return whether a body of this type is a multipart form."""
    return _MULTIPART.match(content_type) is not None


def parse_form(data: bytes, content_type: str, names: frozenset[str]) -> Form:
    """Find fields in a form.

    Args:
        data: the body.
        content_type: its type, which names the boundary.
        names: the fields that are wanted; files are none.

    Raises:
        FormInvalid: the form has too many parts or none, or a field occurs more than once.
    """
    spans: dict[str, tuple[int, int]] = {}
    for header, start, end in _list_parts(data, _read_boundary(content_type)):
        dispositions = _DISPOSITION.findall(header)
        if len(dispositions) != 1:
            raise FormInvalid("a part of the form does not say once which field it is")
        parameters = _read_parameters(dispositions[0].decode("utf-8", "replace"))
        name = parameters.get("name", "")
        if name not in names or not parameters.keys().isdisjoint(("filename", "filename*")):
            continue
        if name in spans:
            raise FormInvalid(f"{name!r} occurs more than once", name)
        spans[name] = (start, end)
    return Form(data, spans)


def _read_boundary(content_type: str) -> bytes:
    boundary = _read_parameters(content_type[:_MAX_CONTENT_TYPE]).get("boundary", "")
    if not boundary:
        raise FormInvalid("the content type of the form names no boundary")
    return boundary.encode("latin-1", "replace")


def _read_parameters(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for spelled, written in _PARAMETER.findall(text):
        name = spelled.lower()
        if name in parameters:
            raise FormInvalid(f"a header of the form has the parameter {name[:50]!r} twice")
        quoted = written.startswith('"')
        parameters[name] = _ESCAPED.sub(r"\1", written[1:-1]) if quoted else written
    return parameters


def _list_parts(data: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the header of each part, and where its content starts and ends."""
    dashes = b"--" + boundary
    # Anything may stand before the first delimiter.
    start = 0 if data.startswith(dashes) else data.find(b"\n" + dashes) + 1
    first = _DELIMITER_END.match(data, start + len(dashes))
    if not data.startswith(dashes, start) or first is None or first[1]:
        raise FormInvalid("the body is no multipart form with the boundary of its content type")
    # Clients that end lines with a line feed alone do so everywhere.
    newline = first[2]
    delimiter = newline + dashes
    start = first.end()
    content = _find_content(data, start, newline)
    position = content
    for _ in range(_MAX_DELIMITERS):
        position = data.find(delimiter, position)
        if position < 0:
            return
        end = _DELIMITER_END.match(data, position + len(delimiter))
        if end is None:  # The content goes on with what only looks like a delimiter.
            position += len(delimiter)
            continue
        yield data[start:content], content, position
        if end[1]:
            return
        start = end.end()
        content = position = _find_content(data, start, newline)
    raise FormInvalid(f"the form has more than {_MAX_DELIMITERS} parts")


def _find_content(data: bytes, start: int, newline: bytes) -> int:
    """Return where the content of the part starts whose header starts here."""
    if data.startswith(newline, start):
        return start + len(newline)
    end = data.find(newline * 2, start, start + _MAX_PART_HEADER)
    if end < 0:
        raise FormInvalid("a part of the form has no end of its header, or a very long one")
    return end + 2 * len(newline)
