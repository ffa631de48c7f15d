"""What clients and engines send costs steps and memory that do not depend on what it is made of."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from factories import PLACEMENT, make_answers, make_kv_params, make_pod
from hypothesis import example, given, settings
from hypothesis import strategies as st
from work import Work, measure

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, whole_body
from pdrouter.engines.neuron.legacy import NeuronLegacy
from pdrouter.engines.registry import find_dialect
from pdrouter.engines.split import HandoffInvalid, Leg
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.openai.body import MAX_MEMBERS, Body, encode
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.media import MAX_PARTS
from pdrouter.openai.media_bytes import measure_media
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.prompt_prefix import hash_prompt
from pdrouter.openai.prompt_text import MAX_VALUES, extract_text
from pdrouter.openai.request import parse_request
from pdrouter.openai.usage import read_usage
from pdrouter.openai.usage_scan import StreamScan

SIZE = 500_000
MOST_STEPS = 300 * (MAX_MEMBERS + MAX_PARTS)
"""About twice what the largest request takes that has as many members and parts as are read."""
MOST_MEMORY = 3 * SIZE
"""Nothing is built of what a body is made of: three copies are enough for all that is done."""
CHAT = "/v1/chat/completions"
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":5}'


def read_request(path: str, data: bytes) -> None:
    """Do with a body all that is done with one on the event loop."""
    with suppress(RequestRejected, HandoffInvalid):
        request = parse_request(
            ENDPOINTS[path],
            "",
            data,
            transfer_members=TRANSFER_MEMBERS,
            split_multimodal=False,
        )
        hash_prompt(request)
        whole_body(request)
        for connector in (NixlPull(), NeuronLegacy()):
            connector.side_body(Leg.PREFILL, request, PLACEMENT)
        answer = encode({"kv_transfer_params": make_kv_params()})
        NixlPull().last_body(request, PLACEMENT, make_answers(answer, make_pod()))


def expect_bounded(work: Work) -> None:
    assert work.steps <= MOST_STEPS
    assert work.memory <= MOST_MEMORY


_FRAGMENTS = st.sampled_from(
    [
        *(b"[]", b"{}", b'""', b"0", b"null", b"[[]]", b"[{}]", b'{"":{}}', b'{"type":"x"}'),
        *(b'{"content":[]}', b'{"content":[{}]}', b'{"content":[{"content":[{}]}]}', b'"a"'),
        *(rb'"\\"', rb'"\""', rb'"\u0061"', b"1e9", b"-0.5", b"[", b"{", b'"', b"\\", b"\xff"),
        *("é".encode(), "😀".encode(), b"\xf0\x9f", b" ", b"\n", b",", b":", b"]", b"}"),
        *(b'{"role":"user","content":"hi"}', b'{"type":"image_url"}', b'{"image_url":null}'),
        *(b'"a":1', b'"a":[]', b'"model":"m"', rb'"mod\u0065l":"m"', b'"kv_transfer_params":{}'),
    ]
)
_HOLDERS = st.sampled_from(
    [
        b'{"model":"m","messages":[%s]}',
        b'{"model":"m","messages":[{"role":"user","content":[%s]}]}',
        b'{"model":"m","messages":[{"role":"user","content":"%s"}]}',
        b'{"model":"m","messages":[{"a":%s}]}',
        b'{"model":"m","messages":[{}],"a":[%s],"a":1}',
        b'{"model":"m","messages":[{}],"a":{%s},"a":{}}',
        b'{"model":"m","messages":[{}],"model":[%s]}',
        b'{"model":"m","messages":[{}],"tools":[%s]}',
        b'{"model":"m","messages":[{}],"%s":1}',
        b'{"model":"m","messages":[{}],%s}',
        b'{%s,"model":"m","messages":[{}]}',
        b'{"model":"m","prompt":[%s],"input":[%s],"store":false}',
        b'{"model":"m","prompt":"%s"}',
        b'{"model":"m","token_ids":[%s],"sampling_params":{"extra_args":{%s}}}',
        b'{"model":"m","token_ids":[1],"sampling_params":{%s}}',
        b'{"model":"m","messages":[{}],"vllm_xargs":{%s}}',
        b'{"model":"m","messages":[{}],"vllm_xargs":{"rid":[%s],"rid":1}}',
        b'{"model":"m","messages":[{}],"max_tokens":%s}',
        b"%s",
    ]
)
_JOINTS = st.sampled_from([b",", b", ", b"", b",\n"])


def fill(holder: bytes, fragment: bytes, joint: bytes) -> bytes:
    """Return a body of the given size, full of one thing."""
    count = SIZE // (len(fragment + joint) * holder.count(b"%s"))
    return holder.replace(b"%s", joint.join([fragment] * count))


@settings(max_examples=60)
@given(
    st.sampled_from([path for path, endpoint in ENDPOINTS.items() if endpoint.legs == 2]),
    _HOLDERS,
    _FRAGMENTS,
    _JOINTS,
)
@example(CHAT, b'{"model":"m","a":[%s],"a":1,"messages":[{}]}', b"[]", b",")
@example(CHAT, b'{"model":"m","messages":[%s]}', b"{}", b",")
@example(CHAT, b'{"model":"m","messages":[{"content":[%s]}]}', b"{}", b",")
@example(CHAT, b'{"model":"m","messages":[%s]}', b'{"content":[{"content":[{}]}]}', b",")
@example(CHAT, b'{"model":"m","messages":[%s]}', b'"ab"', b",")
@example(CHAT, b'{"model":"m","messages":[{}],%s}', b'"a":1', b",")
@example(CHAT, b'{"model":"m","messages":[{}],"%s":1}', "😀".encode(), b",")
@example(CHAT, b'{"model":"m","messages":[{}],"%s":1}', "😀".encode(), b"")
@example(CHAT, b'{"model":"m","messages":[{}],"vllm_xargs":{"%s":1}}', "😀".encode(), b"")
@example("/v1/completions", b'{"model":"m","prompt":[%s]}', b'"a"', b",")
def test_no_body_costs_more_than_the_bounds_allow(
    path: str, holder: bytes, fragment: bytes, joint: bytes
) -> None:
    data = fill(holder, fragment, joint)
    expect_bounded(measure(lambda: read_request(path, data)))


def test_names_cost_no_more_than_the_bounds_allow() -> None:
    # One wide character has each letter of a name take four bytes.
    names = (f'"{number:03}😀{"a" * 249}":1' for number in range(MAX_MEMBERS - 2))
    data = b'{"model":"m","messages":[{}],%s}' % ",".join(names).encode()
    expect_bounded(measure(lambda: read_request(CHAT, data)))


@pytest.mark.parametrize("fragment", [b"1", b'"ab"', b"[]", b"{}", b'{"content":[{}]}'])
@pytest.mark.parametrize(
    ("name", "holder"),
    [
        ("prompt", b'{"model":"m","prompt":[%s]}'),
        ("messages", b'{"model":"m","messages":[{"content":[%s]}]}'),
        ("", b'{"model":"m","documents":[%s]}'),
    ],
)
def test_no_prompt_costs_more_than_the_bounds_allow(
    name: str, holder: bytes, fragment: bytes
) -> None:
    body = Body(fill(holder, fragment, b","))
    expect_bounded(measure(lambda: measure_media(body, name)))


@pytest.mark.parametrize("depth", [10, 300])
def test_a_large_value_within_many_others_is_copied_by_none(depth: int) -> None:
    large = b'{"content":' * depth + b'"%s"' % (b"x" * SIZE) + b"}" * depth
    body = Body(b'{"model":"m","messages":[%s]}' % large)
    work = measure(lambda: measure_media(body, "messages"))
    assert work.steps < 1_000
    assert work.memory < SIZE


@pytest.mark.parametrize("megabytes", [1, 8])
def test_a_plain_body_costs_few_steps_and_no_copy(megabytes: int) -> None:
    data = PLAIN % (b"hello wo" * 125_000 * megabytes)
    work = measure(lambda: read_request(CHAT, data))
    # The check of UTF-8 and the hashes go piece by piece.
    assert work.steps < 40_000
    assert work.memory < 1_000_000


def test_a_large_value_beside_many_repeated_members_is_looked_at_once() -> None:
    few, many = (
        PLAIN.replace(b"{", b"{" + b'"a":1,' * count + b'"a":"%s",' % (b"x" * SIZE), 1) % b"hi"
        for count in (10, 900)
    )
    assert Body(many).duplicates == {"a"}
    costs = [measure(lambda data=data: read_request(CHAT, data)) for data in (few, many)]  # type: ignore[misc]
    assert costs[1].memory < 1.5 * costs[0].memory + 900 * 500


def _list_answers() -> Iterator[bytes]:
    handle = encode(make_kv_params(remote_host="localhost"))
    for more in (
        b'"a":[' + b",".join([b"[]"] * (SIZE // 3)) + b'],"a":1',
        b",".join([b'"a":1'] * (SIZE // 6)),
        b",".join(b'"%d":1' % number for number in range(SIZE // 10)),
        b'"remote_block_ids":[' + b",".join([b"[]"] * (SIZE // 3)) + b"]",
        b'"remote_block_ids":[[' + b",".join([b"1"] * (SIZE // 2)) + b"]]",
    ):
        yield b'{"kv_transfer_params":' + handle[:-1] + b"," + more + b"}}"


@pytest.mark.parametrize("answer", list(_list_answers()), ids=range(5))
@pytest.mark.parametrize("connector", [NixlPull(), NeuronLegacy()])
def test_no_prefill_answer_costs_more_than_the_bounds_allow(
    connector: NixlPull | NeuronLegacy, answer: bytes
) -> None:
    request = parse_request(
        ENDPOINTS[CHAT], "", PLAIN % b"hi", transfer_members=frozenset(), split_multimodal=False
    )

    def hand_over() -> None:
        read_usage(answer)
        with suppress(HandoffInvalid):
            connector.last_body(request, PLACEMENT, make_answers(answer, make_pod()))

    expect_bounded(measure(hand_over))


@pytest.mark.parametrize(
    "piece",
    [
        b'data: {"usage":{' + b'"a":{},' * 1000,
        b'data: {"usage":{}}\n',
        b"\n",
        b"\r",
        b'"usage":{' * 1000,
        b"data:" * 1000,
    ],
)
def test_no_stream_costs_more_than_the_bounds_allow(piece: bytes) -> None:
    data = piece * (SIZE // len(piece))

    def scan() -> None:
        scan = StreamScan()
        for start in range(0, len(data), 16_000):
            scan.feed(data[start : start + 16_000])
        scan.finish()

    work = measure(scan)
    assert work.steps <= 100_000
    assert work.memory <= 8 * SIZE


@pytest.mark.parametrize(
    "line",
    [
        b"vllm:num_requests_running",
        b"vllm:num_requests_running{",
        b'vllm:num_requests_running{a="',
        b'{a="\\',
        b'vllm:num_requests_running{a="b"} 1\n',
        b'x{a="b"} 1\n',
        b"\n",
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_no_metrics_page_costs_more_than_the_bounds_allow(engine: str, line: bytes) -> None:
    page = line * (SIZE // len(line))
    expect_bounded(measure(lambda: find_dialect(engine).read(page)))


def test_a_prompt_of_more_values_than_texts_have_is_not_taken_apart() -> None:
    items = b",".join([b"[]"] * MAX_VALUES)
    request = parse_request(
        ENDPOINTS[CHAT],
        "",
        b'{"model":"m","messages":[{"content":[%s]}]}' % items,
        transfer_members=frozenset(),
        split_multimodal=True,
    )
    assert extract_text(request) is None
    work: Callable[[], object] = lambda: extract_text(request)  # noqa: E731
    assert measure(work).steps < 1_000
