"""The ids of a request."""

import uuid

import pytest

from pdrouter.extproc.request_ids import create_request_id, pair_ids, read_client_id


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ""),
        ({"x-request-id": ""}, ""),
        ({"x-request-id": "abc"}, "abc"),
        ({"x-request-id": " abc "}, "abc"),
        ({"x-request-id": "a, b"}, "a, b"),
        ({"x-request-id": "x" * 512}, "x" * 512),
        ({"x-request-id": "x" * 513}, ""),
        ({"x-request-id": "a\nb"}, ""),
        ({"x-request-id": "a\tb"}, ""),
        ({"x-request-id": "caf\u00e9"}, ""),
        ({"x-request-id": "\ufffd"}, ""),
        ({"x-client-request-id": "c", "x-request-id": "of-envoy"}, "c"),
        ({"x-client-request-id": "\x7f", "x-request-id": "r"}, "r"),
        ({"x-client-request-id": "", "x-request-id": "r"}, "r"),
    ],
)
def test_a_clients_id_counts_if_it_can_stand_in_a_header_and_a_log(
    headers: dict[str, str], expected: str
) -> None:
    assert read_client_id(headers) == expected


def test_a_response_names_a_clients_id_only_if_there_is_one() -> None:
    assert pair_ids("r", "") == (("x-request-id", "r"),)
    assert pair_ids("r", "c") == (("x-request-id", "r"), ("x-client-request-id", "c"))


def test_ids_are_random_uuids() -> None:
    ids = {create_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    read = {str(uuid.UUID(each)) for each in ids}
    assert read == ids
    assert {uuid.UUID(each).version for each in ids} == {4}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
