"""How many headers a request may have, and an answer may get."""

import json

import pytest
from exchanges import Bench, error_of, request_body, request_headers
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.extproc.header_limits import HeaderLimits
from pdrouter.extproc.messages import ImmediateReply, PhaseReply, RequestHeaders, ResponseHeaders
from pdrouter.openai.errors import RequestRejected

USUAL = {"x-request-id": "r", "content-length": "2"}
LIMITS = HeaderLimits(100, 10_000)


@pytest.mark.parametrize(
    ("headers", "count", "size", "refused"),
    [
        (USUAL, 95, 0, False),
        (USUAL, 96, 0, True),
        # Those that are set anew make it longer.
        ({"x-request-id": "r"}, 94, 0, False),
        ({"x-request-id": "r"}, 95, 0, True),
        ({}, 93, 0, False),
        ({}, 94, 0, True),
        # A client's own are replaced.
        ({**USUAL, "target-pod": "x", "routing-strategy": "pd"}, 97, 0, False),
        ({**USUAL, "target-pod": "x", "routing-strategy": "pd"}, 98, 0, True),
        (USUAL, 5, 8_976, False),
        (USUAL, 5, 8_977, True),
    ],
)
def test_a_request_keeps_room_for_what_the_router_sets(
    headers: dict[str, str], count: int, size: int, refused: bool
) -> None:
    event = RequestHeaders(headers, count=count, size=size)
    if not refused:
        LIMITS.check_request(event)
        return
    with pytest.raises(RequestRejected) as rejected:
        LIMITS.check_request(event)
    assert (rejected.value.status, rejected.value.code) == (431, "request_headers_too_large")


async def test_too_many_headers_are_refused_before_anything_is_chosen() -> None:
    bench = Bench()
    event = request_headers()
    (reply,) = await bench.tell(RequestHeaders(event.headers, count=98))
    assert error_of(reply) == (431, "request_headers_too_large")
    assert isinstance(reply, ImmediateReply)
    message = json.loads(reply.body)["error"]["message"]
    assert "98 headers" in message
    assert "93" in message
    assert bench.close().decision is None


ADDED = (("x-request-id", "r"), ("x-pd-decision", "disaggregated"), ("target-pod", "decode-0"))


@pytest.mark.parametrize(
    ("headers", "count", "size", "kept"),
    [
        ({}, 97, 0, 3),
        ({}, 98, 0, 2),
        ({}, 100, 0, 0),
        ({}, 120, 0, 0),
        ({"x-request-id": "of-the-engine"}, 100, 0, 1),
        ({"x-request-id": "of-the-engine"}, 99, 0, 2),
        ({}, 5, 9_980, 1),
        ({}, 5, 10_000, 0),
    ],
)
def test_an_answer_gets_the_first_headers_that_fit(
    headers: dict[str, str], count: int, size: int, kept: int
) -> None:
    event = ResponseHeaders(headers, count=count, size=size)
    assert LIMITS.keep_fitting(ADDED, event) == ADDED[:kept]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.just("v")),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.text("v", max_size=30)), max_size=8),
    st.integers(0, 12),
    st.integers(0, 200),
)
def test_what_is_kept_never_passes_the_limits(
    headers: dict[str, str], added: list[tuple[str, str]], room: int, size: int
) -> None:
    count = len(headers)
    limits = HeaderLimits(count + room, size + 100)
    kept = limits.keep_fitting(tuple(added), ResponseHeaders(headers, count=count, size=size))
    assert count + len({name for name, _ in kept} - headers.keys()) <= limits.count
    assert size + sum(len(name) + len(value) for name, value in kept) <= limits.size


async def test_an_answer_with_many_headers_is_passed_on_without_an_explanation() -> None:
    bench = Bench()
    *_, reply = await bench.tell(
        request_headers(), request_body(), ResponseHeaders({":status": "200"}, count=100)
    )
    assert isinstance(reply, PhaseReply)
    assert reply.set_headers == ()
    bench.close()
