"""How the headers of a message are read."""

import pytest

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc import header_map
from pdrouter.extproc.header_map import read_headers


def read(*headers: tuple[str, str]) -> dict[str, str]:
    fields = [pb.HeaderValue(key=name, raw_value=value.encode()) for name, value in headers]
    return read_headers([field.SerializeToString() for field in fields])


def test_headers_are_the_same_when_they_come_again() -> None:
    headers = (("accept", "*/*"), ("x-request-id", "1"), ("accept", "text/html"))

    first, again = read(*headers), read(*headers)

    assert first == again == {"accept": "*/*, text/html", "x-request-id": "1"}
    assert first is not again


@pytest.mark.parametrize(
    "name", ["Authorization", "x-api-key", "api-key", "proxy-authorization", "cookie", "set-cookie"]
)
def test_no_secret_is_kept(name: str) -> None:
    secret = "sk-only-here"

    assert read((name, secret)) == read((name, secret)) == {name.lower(): secret}

    assert all(secret not in value for _, value in header_map._KNOWN.values())
