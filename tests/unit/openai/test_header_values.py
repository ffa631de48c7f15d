"""Header values in any case, as lists, empty, repeated, or not text at all."""

import pytest
from exchanges import Bench, error_of, request_body, request_headers, response_headers

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.codec import decode
from pdrouter.extproc.messages import PhaseReply
from pdrouter.openai.header_values import (
    is_asked,
    is_encoded,
    list_keys,
    list_members,
    read_one,
    read_strategy,
)


@pytest.mark.parametrize(
    ("value", "members"),
    [
        ("", []),
        (" , ,", []),
        ("a", ["a"]),
        (" a ,\tB,,c ", ["a", "B", "c"]),
    ],
)
def test_a_list_has_no_empty_members(value: str, members: list[str]) -> None:
    assert list_members(value) == members


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (" , ", ""),
        ("pd", "pd"),
        (" Least_Request ", "least-request"),
        ("PD, pd", "pd"),
        ("pd,", "pd,"),
        (" prefix-cache:2, Least_Request", "prefix-cache:2, Least_Request"),
        ("least-request:2,least-request:2", "least-request:2"),
    ],
)
def test_a_strategy_may_be_a_list_that_is_told_again_as_it_is(value: str, text: str) -> None:
    assert read_strategy(value) == text


def test_a_clients_own_name_keeps_its_case() -> None:
    assert read_one(" Fast_1, Fast_1 ") == "Fast_1"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("", False),
        (" ", False),
        ("identity", False),
        ("Identity", False),
        ("identity, IDENTITY,", False),
        ("gzip", True),
        ("identity, gzip", True),
        ("GZIP", True),
        ("\ufffd", True),
    ],
)
async def test_only_a_body_that_is_encoded_is_refused(value: str, encoded: bool) -> None:
    assert is_encoded(value) is encoded
    bench = Bench()
    (reply,) = await bench.tell(request_headers(content_encoding=value))
    if encoded:
        assert error_of(reply) == (415, "unsupported_encoding")
    else:
        assert isinstance(reply, PhaseReply)
    bench.close()


@pytest.mark.parametrize(
    ("headers", "keys"),
    [
        ({}, []),
        ({"authorization": ""}, []),
        ({"authorization": "Bearer"}, []),
        ({"authorization": "Bearer "}, []),
        ({"authorization": "Bearer k"}, ["k"]),
        ({"authorization": "bEaReR   k  "}, ["k"]),
        ({"authorization": "Bearer\tk"}, ["k"]),
        ({"authorization": " Bearer k"}, ["k"]),
        ({"authorization": "Basic k"}, []),
        ({"authorization": "k"}, []),
        ({"authorization": "Bearerk"}, []),
        ({"authorization": "Bearer a b"}, ["a b"]),
        ({"x-api-key": " k "}, ["k"]),
        ({"x-api-key": "", "authorization": "Bearer k"}, ["k"]),
        ({"x-api-key": "a", "authorization": "Bearer b"}, ["a", "b"]),
        ({"x-api-key": "a", "authorization": "Basic b"}, ["a"]),
        ({"authorization": "Bearer k, Bearer k"}, ["k, Bearer k", "k"]),
        ({"authorization": "Bearer k,Bearer k,"}, ["k,Bearer k,", "k"]),
        ({"authorization": "Bearer k, Bearer l"}, ["k, Bearer l"]),
        ({"authorization": "Bearer a,b"}, ["a,b", "a, b"]),
        ({"authorization": "Bearer k, Basic k"}, ["k, Basic k"]),
        ({"authorization": ","}, []),
        ({"x-api-key": "k, k"}, ["k, k", "k"]),
        ({"x-api-key": "k, l"}, ["k, l"]),
    ],
)
def test_keys_are_found_where_clients_put_them(headers: dict[str, str], keys: list[str]) -> None:
    assert list_keys(headers) == keys


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({"x-api-key": "key", "authorization": "Bearer other"}, True),
        ({"x-api-key": "other", "authorization": "Bearer key"}, True),
        ({"x-api-key": "ke", "authorization": "Bearer y"}, False),
        ({"authorization": "Bearer k\ufffdy"}, False),
        ({"authorization": "Bearer key,Bearer key"}, True),
        ({"authorization": "Bearer key, Bearer other"}, False),
        ({"x-api-key": "key,key"}, True),
    ],
)
async def test_one_right_key_is_enough(headers: dict[str, str], admitted: bool) -> None:
    bench = Bench(bearer_token="key")
    (reply,) = await bench.tell(request_headers(extra=headers))
    assert isinstance(reply, PhaseReply) is admitted
    bench.close()


@pytest.mark.parametrize(
    ("value", "asked"),
    [("", True), ("1", True), ("yes", True), ("0", False), (" False ", False), ("off", False)],
)
def test_a_header_may_say_no(value: str, asked: bool) -> None:
    assert is_asked({"x": value}, "x") is asked
    assert not is_asked({}, "x")


@pytest.mark.parametrize(
    ("value", "decision"),
    [
        ("", "disaggregated"),
        (" , ", "disaggregated"),
        ("PD", "disaggregated"),
        (" Random,random", "aggregated;reason=strategy-random"),
        ("LEAST_REQUEST", "aggregated;reason=strategy-least-request"),
    ],
)
async def test_a_strategy_may_be_written_in_any_way(value: str, decision: str) -> None:
    bench = Bench()
    *_, response = await bench.tell(
        request_headers(routing_strategy=value), request_body(), response_headers()
    )
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == decision
    bench.close()


async def test_two_strategies_that_give_no_scores_are_none() -> None:
    bench = Bench()
    value = "least-request, random"
    _, reply = await bench.tell(request_headers(routing_strategy=value), request_body())
    assert error_of(reply) == (400, "invalid_routing_strategy")
    bench.close()


READ = (
    "authorization",
    "config-profile",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "external-filter",
    "routing-strategy",
    "upgrade",
    "x-api-key",
    "x-client-request-id",
    "x-client-routing-strategy",
    "x-pd-decision-detail",
    "x-request-id",
)


@pytest.mark.parametrize("value", [b"", b" ", b",", b"\xff\xfe", b"\x80,\x80", "é".encode()])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", READ)
async def test_no_value_of_a_header_that_is_read_is_an_internal_error(
    name: str, times: int, value: bytes
) -> None:
    message = pb.ProcessingRequest()
    fields = [(":path", b"/v1/chat/completions"), (":method", b"POST"), *[(name, value)] * times]
    for key, raw in fields:
        message.request_headers.headers.headers.append(
            pb.HeaderValue(key=key, raw_value=raw).SerializeToString()
        )
    bench = Bench(bearer_token="key", explain_decisions=True)
    for event in (decode(message.SerializeToString()), request_body(), response_headers()):
        if bench.exchange.ended:
            break
        await bench.exchange.handle(event)
    record = bench.close()
    assert record.code not in ("internal_error", "protocol_error")
