"""Bodies: what is accepted, and that an edit touches nothing but what it is asked to."""

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pdrouter.openai.body import Body, BodyInvalid, check_object, encode

_WHITE_SPACE = st.text(" \t\r\n", max_size=3)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(10**18, 10**40).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "0.0", "1E5", "1e-7", "1.50", "-2.5E+10", "1e400", "9007199254740993"]),
)


def _escape(text: str) -> str:
    return "".join(
        f"\\u{unit:04x}" if unit < 0x80 else json.dumps(char)[1:-1]
        for char in text
        for unit in [ord(char)]
    )


_SPELLINGS = (
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False),
    lambda text: json.dumps(text).replace("/", "\\/"),
    lambda text: f'"{_escape(text)}"',
)


@st.composite
def _strings(draw: st.DrawFn, text: st.SearchStrategy[str] = _TEXT) -> tuple[str, str]:
    """A string, and one of its spellings."""
    value = draw(text)
    return value, draw(st.sampled_from(_SPELLINGS))(value)


_SCALARS = st.one_of(
    st.sampled_from(["null", "true", "false", '""', "[]", "{}"]),
    _NUMBERS,
    _strings().map(lambda pair: pair[1]),
)


def _join(draw: st.DrawFn, items: list[str], brackets: str) -> str:
    spaced = [f"{draw(_WHITE_SPACE)}{item}{draw(_WHITE_SPACE)}" for item in items]
    return brackets[0] + (",".join(spaced) or draw(_WHITE_SPACE)) + brackets[1]


@st.composite
def _containers(draw: st.DrawFn, children: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(children, max_size=3))
    if draw(st.booleans()):
        return _join(draw, items, "[]")
    keys = [draw(_strings())[1] for _ in items]
    return _join(
        draw,
        [f"{key}:{draw(_WHITE_SPACE)}{item}" for key, item in zip(keys, items, strict=True)],
        "{}",
    )


_VALUES = st.recursive(_SCALARS, _containers, max_leaves=6)
_NAMES = st.one_of(
    st.sampled_from(["a", "b", "model", "a/b", "max_tokens", "é", "", '"', "\\"]), _TEXT
)


@st.composite
def _objects(draw: st.DrawFn) -> tuple[list[tuple[str, str]], str]:
    """An object with odd spacing: its members as (name, value text), and its text."""
    members: list[tuple[str, str]] = []
    texts: list[str] = []
    for value in draw(st.lists(_VALUES, max_size=6)):
        name, key = draw(_strings(_NAMES))
        members.append((name, value))
        texts.append(f"{key}{draw(_WHITE_SPACE)}:{draw(_WHITE_SPACE)}{value}")
    return members, draw(_WHITE_SPACE) + _join(draw, texts, "{}") + draw(_WHITE_SPACE)


_EDITS = st.tuples(st.dictionaries(_NAMES, _VALUES, max_size=3), st.sets(_NAMES, max_size=3))


def _load(data: bytes) -> list[tuple[str, Any]]:
    pairs = json.loads(data, object_pairs_hook=list, parse_float=str, parse_int=str)
    assert isinstance(pairs, list)
    return pairs


def _edit_reference(
    members: list[tuple[str, str]], replace: dict[str, str], remove: set[str]
) -> list[tuple[str, str]]:
    """What an edit means: one pass over the members, then the new ones."""
    edited: list[tuple[str, str]] = []
    placed: set[str] = set()
    for name, value in members:
        if name in replace:
            if name not in placed:
                edited.append((name, replace[name]))
                placed.add(name)
        elif name not in remove:
            edited.append((name, value))
    return edited + [(name, value) for name, value in replace.items() if name not in placed]


def _text_of(members: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f"{json.dumps(n)}:{v}" for n, v in members) + "}").encode()


@settings(max_examples=250, deadline=None)
@given(_objects(), st.lists(_EDITS, min_size=1, max_size=4))
def test_any_edits_equal_the_reference_and_keep_the_bytes_of_every_other_member(
    drawn: tuple[list[tuple[str, str]], str], edits: list[tuple[dict[str, str], set[str]]]
) -> None:
    members, text = drawn
    data = text.encode()
    for replace, remove in edits:
        edited = Body(data).edit({name: value.encode() for name, value in replace.items()}, remove)
        data = bytes(edited)
        members = _edit_reference(members, replace, remove)
    assert _load(data) == _load(_text_of(members))
    spans = Body(data)._spans
    assert [(name, data[start:end].decode()) for name, _, start, end in spans] == members


def _edit_plainly(body: Body, replace: dict[str, bytes], remove: set[str]) -> bytes:
    """What an edit means byte by byte: each member that stays keeps what parts it from the one
    before, unless it is the first now."""
    data, pending, inside = body.data, dict(replace), b""
    opening = end = re.match(rb"\s*\{\s*", data).end()  # type: ignore[union-attr]
    for name, start, value_start, value_end in body._spans:
        parting, key, value = data[end:start], data[start:value_start], data[value_start:value_end]
        end = value_end
        if name in replace:
            if name not in pending:
                continue
            value = pending.pop(name)
        elif name in remove:
            continue
        inside += (parting if inside else b"") + key + value
    for name, value in pending.items():
        inside += (b"," if inside else b"") + encode(name) + b":" + value
    return data[:opening] + inside + data[end:]


@settings(max_examples=300, deadline=None)
@given(_objects(), _EDITS)
def test_an_edited_body_equals_the_plain_reference_byte_by_byte(
    drawn: tuple[list[tuple[str, str]], str], edit: tuple[dict[str, str], set[str]]
) -> None:
    body = Body(drawn[1].encode())
    replace, remove = {name: value.encode() for name, value in edit[0].items()}, edit[1]
    assert bytes(body.edit(replace, remove)) == _edit_plainly(body, replace, remove)


@settings(max_examples=150, deadline=None)
@given(_objects(), _EDITS)
def test_members_that_are_kept_keep_the_spelling_of_their_keys_and_their_spacing(
    drawn: tuple[list[tuple[str, str]], str], edit: tuple[dict[str, str], set[str]]
) -> None:
    data = drawn[1].encode()
    replace, remove = {name: value.encode() for name, value in edit[0].items()}, edit[1]
    before, after = Body(data), Body(bytes(Body(data).edit(replace, remove)))
    touched = remove | replace.keys()

    def kept(body: Body) -> list[bytes]:
        return [
            bytes(body.data[key:end]) for name, key, _, end in body._spans if name not in touched
        ]

    assert kept(after) == kept(before)


@settings(max_examples=100, deadline=None)
@given(_objects())
def test_an_edit_of_nothing_changes_nothing(drawn: tuple[list[tuple[str, str]], str]) -> None:
    data = drawn[1].encode()
    assert bytes(Body(data).edit()) == data
    assert bytes(Body(data).edit({}, ())) == data
    assert bytes(Body(data).edit(remove={"no such member"})) == data


@settings(max_examples=100, deadline=None)
@given(_objects())
def test_members_are_found_with_the_last_value_of_each_name(
    drawn: tuple[list[tuple[str, str]], str],
) -> None:
    members, text = drawn
    body = Body(text.encode())
    last = dict(members)
    assert list(body.names) == list(last)
    for name, value in last.items():
        assert name in body
        assert body.raw(name) == value.encode()
    names = [name for name, _ in members]
    assert body.duplicates == {name for name in names if names.count(name) > 1}


_TRICKY = "".join(
    ['{}[]:,"\\/ \t\n', "0123456789.-+eE", "abunrltfsNaI", "\x00\x1f\x7f\x0b\xa0é\u2028"]
)
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _is_strict_object(data: bytes) -> bool:
    """Whether the standard library takes the bytes for an object, of the strict kind: in UTF-8
    without a byte order mark, without NaN and infinities, without half a surrogate pair."""
    read: list[Any] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Of members with one name, the object has the last alone.
        read.append(pairs)
        return dict(pairs)

    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=str,
            object_pairs_hook=keep,
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not _LONE_SURROGATE.search(
        json.dumps(read, ensure_ascii=False)
    )


def _is_accepted(check: Callable[[bytes], object], data: bytes) -> bool:
    try:
        check(data)
    except BodyInvalid:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=24),
        st.text(_TRICKY, max_size=24).map(str.encode),
        st.text(_TRICKY, max_size=12).map(lambda text: f'{{"a":{text}}}'.encode()),
        st.text(_TRICKY, max_size=12).map(lambda text: f'{{"{text}":1}}'.encode()),
        st.text(_TRICKY, max_size=12).map(lambda text: f'{{"a":"{text}"}}'.encode()),
        st.text(_TRICKY, max_size=12).map(lambda text: f'{{"a":{{"b":{text}}}}}'.encode()),
    )
)
@example(b"")
@example(b"null")
@example(b"[{}]")
@example(b'{"a":NaN}')
@example(b'{"a":-Infinity}')
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":"\xed\xa0\x80"}')
@example(rb'{"a":"\ud800"}')
@example(rb'{"a":"\ud83d\ude00"}')
@example(rb'{"a":"\ude00\ud83d"}')
@example(rb'{"\ud800":1}')
@example(rb'{"a":"\ud800","a":1}')
@example(b'{"a":1}{"a":2}')
@example(b'{"a":1}\x00')
@example('{"a":1}'.encode("utf-16"))
@example(b"{" + b'"a":{' * 50 + b'"b":1' + b"}" * 51)
def test_bytes_are_a_body_exactly_if_they_are_a_strict_json_object(data: bytes) -> None:
    assert _is_accepted(Body, data) == _is_strict_object(data)
    assert _is_accepted(check_object, data) == _is_strict_object(data)


@settings(max_examples=100, deadline=None)
@given(_objects(), st.data())
def test_a_damaged_body_is_refused_or_read_as_the_standard_library_reads_it(
    drawn: tuple[list[tuple[str, str]], str], data: st.DataObject
) -> None:
    intact = drawn[1].encode()
    at = data.draw(st.integers(0, len(intact)))
    damaged = (
        intact[:at] + data.draw(st.binary(max_size=2)) + intact[at + data.draw(st.integers(0, 2)) :]
    )
    assume(damaged != intact)
    try:
        body = Body(damaged)
    except BodyInvalid:
        assert not _is_strict_object(damaged)
    else:
        assert dict(_load(bytes(body.edit({"new": b"1"}))))["new"] == "1"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":"\xff"}', "not valid UTF-8 (byte 6)"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"a":', "not valid JSON"),
        (b'{"a":1,"b":["\\uD83D x"]}', "half of a surrogate pair (byte 13)"),
        (b'{"a":"x\\ud83d"}', "half of a surrogate pair (byte 7)"),
        (b'{"a":"\\ud83d\\ude00', "truncated"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize("check", [Body, check_object])
def test_the_error_says_what_is_wrong(
    data: bytes, message: str, check: Callable[[bytes], object]
) -> None:
    with pytest.raises(BodyInvalid, match=re.escape(message)):
        check(data)


@pytest.mark.parametrize("digits", [20, 400, 5_000, 100_000])
@pytest.mark.parametrize("text", ['{"a":%s,"b":1}', '{"a":%s,"a":1,"b":1}', '{"a":1,"a":%s,"b":1}'])
def test_integers_of_any_size_stay_as_they_are(digits: int, text: str) -> None:
    data = (text % ("9" * digits)).encode()
    assert bytes(Body(data).edit({"b": b"2"})) == data.removesuffix(b"1}") + b"2}"


@pytest.mark.parametrize(
    "value", ['"}"', '",\\"x\\":"', "[[1,2],{}]", '{"a":{"a":","}}', "12", "1 ", "12e3"]
)
def test_an_earlier_value_of_a_repeated_name_is_left_out_whole(value: str) -> None:
    data = f'{{"a": {value} , "b":1,"a":1}}'.encode()
    assert bytes(Body(data).edit(remove={"a"})) == b'{"b":1}'
    assert bytes(Body(data).edit(remove={"b"})) == f'{{"a": {value.strip()},"a":1}}'.encode()


def test_a_body_with_more_members_than_any_request_has_is_refused() -> None:
    members = [b'"m%d":1' % number for number in range(1_001)]
    Body(b"{" + b",".join(members[:1_000]) + b"}")
    for many in (members, [b'"m":1'] * 1_001):
        with pytest.raises(BodyInvalid, match="more than 1000 members"):
            Body(b"{" + b",".join(many) + b"}")


@pytest.mark.parametrize("letter", ["n", "\N{GRINNING FACE}", r"\u006e"])
def test_a_longer_name_than_any_member_has_is_refused(letter: str) -> None:
    fits = letter * (256 // len(letter.encode()))
    data = f'{{"{fits}":1,"b":{{"a":2}}}}'.encode()
    assert bytes(Body(data).edit(remove={"b"})) == f'{{"{fits}":1}}'.encode()
    for long in (fits + letter, letter * 100_000):
        with pytest.raises(BodyInvalid, match="takes more than 256 bytes"):
            Body(f'{{"b":{{}},"{long}":1}}'.encode())


@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
def test_a_large_member_stays_as_it_is(size: int) -> None:
    large = b'"' + b'\\"\\u00e9x' * (size // 9) + b'"'
    data = b'{"messages": %s , "max_tokens":5}' % large
    edited = Body(data).edit({"max_tokens": b"1", "stream": b"false"})
    assert bytes(edited) == b'{"messages": %s , "max_tokens":1,"stream":false}' % large


def test_a_member_is_decoded_as_the_expected_type() -> None:
    body = Body(b'{"text":"\\u00e9","flag":true,"none":null,"number":1}')
    assert body.get("text", str) == "é"
    assert body.get("flag", bool) is True
    assert body.get("none", str) is None
    assert body.get("absent", str) is None
    assert body.raw("none") == b"null"
    assert body.raw("absent") is None
    with pytest.raises(msgspec.ValidationError):
        body.get("number", str)
    with pytest.raises(msgspec.ValidationError):
        body.get("number", bool)


@pytest.mark.parametrize(
    ("data", "replace", "remove", "expected"),
    [
        (b"{}", {"a": b"1"}, (), b'{"a":1}'),
        (b" { } ", {"a": b"1", "b": b"2"}, (), b' { "a":1,"b":2} '),
        (b'{"a":1}', {}, {"a"}, b"{}"),
        (b'{ "a" : 1 , "b" : 2 }', {}, {"a"}, b'{ "b" : 2 }'),
        (b'{ "a" : 1 , "b" : 2 }', {}, {"b"}, b'{ "a" : 1 }'),
        (b'{ "a" : 1 , "b" : 2 }', {"a": b"3"}, {"b"}, b'{ "a" : 3 }'),
        (b'{"a":1,"b":2,"c":3}', {"b": b"0"}, {"a", "c"}, b'{"b":0}'),
        (b'{"a":1,"b":2,"a":3}', {"a": b"0"}, (), b'{"a":0,"b":2}'),
        (b'{"a":1}', {"a": b"2"}, {"a"}, b'{"a":2}'),
        (b'{"\\u0061":1}', {"a": b"2"}, (), b'{"\\u0061":2}'),
        (b'{"a":1}', {'q"\n': b"2"}, (), b'{"a":1,"q\\"\\n":2}'),
    ],
)
def test_edits(data: bytes, replace: dict[str, bytes], remove: set[str], expected: bytes) -> None:
    assert bytes(Body(data).edit(replace, remove)) == expected


def test_values_are_encoded_without_spaces_and_in_utf_8() -> None:
    assert encode({"a": [1, None, "é"]}) == '{"a":[1,null,"é"]}'.encode()
