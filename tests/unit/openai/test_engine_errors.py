"""What is read of engines' own errors."""

import pytest

from pdrouter.openai.engine_errors import read_error_message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "out of\\n  blocks", "code": 500}}', "out of blocks"),
        (b'{"error": "busy"}', "busy"),
        (b'{"object": "error", "message": "no such adapter"}', "no such adapter"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b"Internal Server Error", "Internal Server Error"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error": {"message": 5}}', '{"error": {"message": 5}}'),
        (b"[1]", "[1]"),
        (b'{"x":' + b"[" * 5_000, '{"x":' + "[" * 295 + "..."),
        (b"", ""),
    ],
)
def test_the_message_is_found_in_the_shapes_that_engines_use(body: bytes, said: str) -> None:
    assert read_error_message(body) == said


def test_a_message_is_cut() -> None:
    said = read_error_message(b'{"error": {"message": "' + b"x" * 1000 + b'"}}')
    assert said == "x" * 300 + "..."
    assert len(read_error_message(b'{"error": {"message": "' + b"x" * 10_000_000)) == 303
