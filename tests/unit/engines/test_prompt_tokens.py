"""The ids of a prompt's tokens go from the prefill answer to the decode leg, byte by byte."""

import json
from typing import Any

import pytest
from factories import PLACEMENT, make_answers, make_kv_params, make_pod, make_request
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.engines.registry import SplitRules, Splits
from pdrouter.engines.split import Leg
from pdrouter.engines.vllm.nixl import NixlPull

CHAT = "/v1/chat/completions"
POD = make_pod(ip="10.1.2.3")
CLIENT = b'{"model":"m", "messages":[{"role":"user","content":"hi"}] }'
LIMIT = 1_000_000
SPLIT = NixlPull(token_ids_limit=LIMIT)
PUSH = {"transfer_mode": "push", "tp_size": 1, "remote_block_ids": None}


def ask(client: bytes, path: str = CHAT, split: NixlPull = SPLIT) -> dict[str, Any]:
    request = make_request(path, client)
    body: dict[str, Any] = json.loads(bytes(split.side_body(Leg.PREFILL, request, PLACEMENT)))
    return body


def answer_with(ids: bytes, handle: bytes | None = None) -> bytes:
    params = json.dumps(make_kv_params()).encode() if handle is None else handle
    return b'{"choices":[],"prompt_token_ids":%s,"kv_transfer_params":%s}' % (ids, params)


def hand_over(answer: bytes, split: NixlPull = SPLIT, client: bytes = CLIENT) -> bytes:
    answers = make_answers(answer, POD)
    return bytes(split.last_body(make_request(CHAT, client), PLACEMENT, answers))


def test_a_prefill_leg_of_a_chat_asks_for_the_ids_if_it_is_set() -> None:
    assert ask(CLIENT)["return_token_ids"] is True
    plain = ask(CLIENT, split=NixlPull())
    assert "return_token_ids" not in plain
    assert ask(CLIENT) == {**plain, "return_token_ids": True}


@pytest.mark.parametrize("value", [b"true", b"false", b"null"])
def test_what_the_client_says_of_the_ids_stays(value: bytes) -> None:
    client = CLIENT[:-1] + b',"return_token_ids":' + value + b"}"
    assert ask(client)["return_token_ids"] is json.loads(value)


@pytest.mark.parametrize(
    ("path", "client"),
    [
        ("/v1/completions", b'{"model":"m","prompt":"x"}'),
        ("/v1/messages", b'{"model":"m","messages":[{}],"max_tokens":5}'),
        ("/v1/responses", b'{"model":"m","input":"x","store":false}'),
        ("/inference/v1/generate", b'{"model":"m","token_ids":[1]}'),
        # So many tokens as it may have would not go back through Envoy.
        (CHAT, b'{"model":"m","messages":[{"content":"%s"}]}' % (b"x" * (LIMIT // 9))),
    ],
)
def test_nobody_is_asked_for_ids_that_are_of_no_use(path: str, client: bytes) -> None:
    assert "return_token_ids" not in ask(client, path)


@given(st.lists(st.integers(0, 2**40), min_size=1), st.sampled_from([",", ", ", " ,\n"]))
def test_the_ids_are_handed_over_byte_by_byte(ids: list[int], comma: str) -> None:
    written = f"[{comma.join(map(str, ids))}]".encode()
    handle = b'{"do_remote_prefill":true,"remote_block_ids":[[7]],"remote_engine_id":"e",'
    handle += b'"remote_port":5557,"remote_host":"10.9.9.9","cookie":9007199254740993}'
    before = hand_over(answer_with(b"null", handle))
    assert handle in before
    after = hand_over(answer_with(written, handle))
    assert after == before.replace(handle, handle[:-1] + b',"prompt_token_ids":' + written + b"}")


@pytest.mark.parametrize("changes", [{}, {"remote_host": "127.0.0.1"}, PUSH])
def test_the_ids_come_after_whatever_else_changes_in_a_handle(changes: dict[str, Any]) -> None:
    handle = json.dumps(make_kv_params(**changes)).encode()
    plain = json.loads(hand_over(answer_with(b"null", handle)))
    told = json.loads(hand_over(answer_with(b"[1,2,3]", handle)))
    assert told["kv_transfer_params"].pop("prompt_token_ids") == [1, 2, 3]
    assert told == plain


@pytest.mark.parametrize(
    "ids",
    [
        *(b"null", b"[]", b"[ ]", b"{}", b'"[1]"', b"1", b"[-1]", b"[1.5]", b"[1e3]", b"[null]"),
        *(b"[[1]]", b'["1"]', b"[1,true]", b'[1,{"a":2}]'),
    ],
)
def test_what_is_no_list_of_whole_numbers_is_not_handed_over(ids: bytes) -> None:
    assert hand_over(answer_with(ids)) == hand_over(answer_with(b"null"))


def test_ids_without_the_setting_are_not_handed_over() -> None:
    """A client may ask for them, for itself."""
    assert hand_over(answer_with(b"[1]"), NixlPull()) == hand_over(answer_with(b"null"))


def test_an_engine_that_says_ids_in_its_handle_knows_best() -> None:
    handle = json.dumps(make_kv_params(prompt_token_ids=[9])).encode()
    assert hand_over(answer_with(b"[1]", handle)) == hand_over(answer_with(b"null", handle))


def test_ids_do_not_make_a_body_too_large_for_envoy() -> None:
    plain = hand_over(answer_with(b"null"))
    ids = b"[%s]" % b",".join([b"100000"] * 1000)
    added = len(b',"prompt_token_ids":') + len(ids)
    for room, told in ((added, True), (added - 1, False), (0, False)):
        body = hand_over(answer_with(ids), NixlPull(token_ids_limit=len(plain) + room))
        assert (body != plain) is told
        assert len(body) <= len(plain) + room


def test_a_release_has_no_ids() -> None:
    answer = answer_with(b"[1,2]", json.dumps(make_kv_params(remote_request_id="r")).encode())
    (answered,) = make_answers(answer, POD)
    release = SPLIT.release(answered)
    assert release is not None
    assert b"prompt_token_ids" not in bytes(release.body)


def test_a_leg_beside_another_is_not_asked_for_what_nobody_reads() -> None:
    split = Splits(rules=SplitRules(token_ids_limit=LIMIT)).find("vllm", "nixl-push")
    request = make_request(CHAT, CLIENT)
    for peer, asked in ((None, True), ({"remote_engine_id": b'"e"'}, False)):
        body = bytes(split.side_body(Leg.PREFILL, request, structs.replace(PLACEMENT, peer=peer)))
        assert ("return_token_ids" in json.loads(body)) is asked
