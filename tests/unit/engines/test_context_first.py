"""How requests are split for TensorRT-LLM: the exact bodies, what is refused, and signatures."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from factories import PLACEMENT, make_answers, make_body, make_pod, make_request
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.engines.registry import WIRES, SplitRules, Splits
from pdrouter.engines.split import HandoffInvalid, Leg
from pdrouter.engines.trtllm.context_first import ContextFirst, number_request
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.wiring.rules import create_splits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
POD = make_pod(engine="trtllm")
SPLIT = ContextFirst()
NUMBER = number_request(PLACEMENT.request_id, None)
HEADER = "x-trtllm-disagg-auth"


def tell(**change: Any) -> dict[str, Any]:
    """What a context engine says to the other; `...` as a value leaves the member out."""
    params = {
        "request_type": "context_only",
        "first_gen_tokens": [7],
        "ctx_request_id": 2**63 - 1,
        "encoded_opaque_state": "b3BhcXVl",
        "disagg_request_id": NUMBER,
        "ctx_info_endpoint": "10.0.0.1:9000",
        "ctx_usage": None,
        **change,
    }
    return {name: value for name, value in params.items() if value is not ...}


def answer(params: Any = ..., **change: Any) -> bytes:
    choice = {
        "index": 0,
        "finish_reason": "length",
        "disaggregated_params": tell() if params is ... else params,
    }
    members = {"choices": [choice], "prompt_token_ids": [1, 22, 333], "usage": {"a": 1}, **change}
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


def hand_over(body: bytes, path: str = CHAT, client: bytes | None = None) -> bytes:
    request = make_request(path, client)
    return bytes(SPLIT.last_body(request, PLACEMENT, make_answers(body, POD)))


def test_the_context_leg_is_the_clients_body_for_one_token() -> None:
    asks = b'{"request_type":"context_only","disagg_request_id":%d}' % NUMBER
    chat = make_request(
        CHAT,
        b'{ "max_completion_tokens":9,"stream":true, "stream_options":{}, "model":"m",'
        b' "messages":[{}], "min_tokens":3, "seed": 1.0e3}',
    )
    # To these engines, both limits are one member by two names.
    assert bytes(SPLIT.side_body(Leg.PREFILL, chat, PLACEMENT)) == (
        b'{ "stream":false, "model":"m", "messages":[{}], "seed": 1.0e3,"max_tokens":1,'
        b'"disaggregated_params":%s}' % asks
    )
    text = make_request(
        COMPLETIONS, b'{"disaggregated_params":{"a":1},"max_tokens":16,"prompt":[1,2],"model":"m"}'
    )
    assert bytes(SPLIT.side_body(Leg.PREFILL, text, PLACEMENT)) == (
        b'{"disaggregated_params":%s,"max_tokens":1,"prompt":[1,2],"model":"m","stream":false}'
        % asks
    )


def test_the_generation_leg_brings_the_answer_of_the_context_leg() -> None:
    raw = json.dumps(tell(later_member=2**63 + 1, ctx_usage=...), separators=(", ", " : ")).encode()
    body = answer({}).replace(b'"disaggregated_params": {}', b'"disaggregated_params": ' + raw)
    said = raw.replace(b'"context_only"', b'"generation_only"')
    chat = hand_over(body, CHAT, b'{"model":"m", "messages":[{}], "temperature":0.10}')
    assert chat == (
        b'{"model":"m", "messages":[{}], "temperature":0.10,"disaggregated_params":%s,'
        b'"prompt_token_ids":[1, 22, 333]}' % said
    )
    text = hand_over(body, COMPLETIONS, b'{"model":"m","prompt":"hi", "stream": true}')
    assert text == (
        b'{"model":"m","prompt":[1, 22, 333], "stream": true,"disaggregated_params":%s}' % said
    )


def test_the_generation_leg_learns_what_the_context_leg_has_used() -> None:
    assert json.loads(hand_over(answer()))["disaggregated_params"]["ctx_usage"] == {"a": 1}
    told = answer(tell(ctx_usage={"b": 2}))
    assert json.loads(hand_over(told))["disaggregated_params"]["ctx_usage"] == {"b": 2}
    # An engine that does not know it refuses it.
    assert (
        "ctx_usage"
        not in json.loads(hand_over(answer(tell(ctx_usage=...))))["disaggregated_params"]
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[]", "invalid-answer"),
        (b'{"choices":[', "invalid-answer"),
        (answer(choices=[]), "invalid-answer"),
        (answer(choices=[{}, {}]), "invalid-answer"),
        (answer(choices=[{"disaggregated_params": tell()}]), "invalid-answer"),
        (answer(None), "null-params"),
        (answer([]), "invalid-params"),
        (answer(tell(ctx_request_id=None)), "incomplete-params"),
        (answer(tell(ctx_request_id="5")), "incomplete-params"),
        (answer(tell(disagg_request_id=...)), "incomplete-params"),
        (answer(tell(disagg_request_id=NUMBER + 1)), "other-request"),
        (answer(tell(first_gen_tokens=[])), "incomplete-params"),
        (answer(tell(first_gen_tokens=None)), "incomplete-params"),
        (answer(tell(encoded_opaque_state=None, ctx_info_endpoint=...)), "incomplete-params"),
        (answer(prompt_token_ids=...), "no-tokens"),
        (answer(prompt_token_ids=None), "no-tokens"),
        (answer(prompt_token_ids=[]), "no-tokens"),
        (answer(prompt_token_ids=["1"]), "no-tokens"),
        (answer(prompt_token_ids=[[1]]), "no-tokens"),
        (answer(prompt_token_ids=[-1]), "no-tokens"),
    ],
)
def test_what_a_generation_engine_cannot_work_with_is_not_handed_over(
    body: bytes, reason: str
) -> None:
    assert SPLIT.find_final_answer(make_answers(body, POD)) is None
    with pytest.raises(HandoffInvalid) as caught:
        hand_over(body)
    assert caught.value.reason == reason


@pytest.mark.parametrize("reason", ["length", "not_finished"])
def test_an_answer_that_goes_on_is_not_final(reason: str) -> None:
    choices = [{"finish_reason": reason, "disaggregated_params": tell()}]
    assert SPLIT.find_final_answer(make_answers(answer(choices=choices), POD)) is None


def test_a_name_within_a_text_ends_no_answer() -> None:
    text = '"finish_reason":"length"'
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    assert SPLIT.find_final_answer(make_answers(answer(choices=[choice]), POD)) is not None
    other = {"extra": {"finish_reason": "length"}, "finish_reason": "stop"}
    with pytest.raises(HandoffInvalid, match="stop"):
        hand_over(answer(choices=[{**other, "disaggregated_params": tell()}]))


@pytest.mark.parametrize("more", [{"n" * 257: 1}, dict.fromkeys(map(str, range(1001)))])
def test_a_final_answer_from_which_no_handle_can_be_taken_is_not_used(more: dict[str, Any]) -> None:
    choice = {"finish_reason": "stop", "disaggregated_params": tell()}
    for body in (answer(choices=[choice], **more), answer(choices=[{**choice, **more}])):
        assert SPLIT.find_final_answer(make_answers(body, POD)) is None
        with pytest.raises(HandoffInvalid):
            hand_over(body)


@pytest.mark.parametrize("params", [{}, {"disaggregated_params": tell()}])
def test_the_first_token_may_be_the_last_and_the_client_sees_no_handle(
    params: dict[str, Any],
) -> None:
    choice = {"index": 0, "message": {"content": "\u00e9"}, "finish_reason": "stop"}
    body = answer(choices=[{**choice, **params}], id="c", created=2**70)
    final = SPLIT.find_final_answer(make_answers(body, POD))
    assert final is not None
    expected = {"choices": [choice], "usage": {"a": 1}, "id": "c", "created": 2**70}
    assert json.loads(final) == expected


@pytest.mark.parametrize(
    "params",
    [
        tell(),
        tell(ctx_info_endpoint=None),
        tell(encoded_opaque_state=..., ctx_info_endpoint="\u00e9"),
    ],
)
def test_a_hand_over_is_signed_where_there_is_a_key(params: dict[str, Any]) -> None:
    answers = make_answers(answer(params), POD)
    assert SPLIT.last_headers(PLACEMENT, answers) == {}
    signed = {name: params.get(name) for name in ("ctx_info_endpoint", "encoded_opaque_state")}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    digest = hmac.new(b"k", text.encode(), hashlib.sha256).hexdigest()
    assert ContextFirst(b"k").last_headers(PLACEMENT, answers) == {HEADER: f"sha256={digest}"}


def test_the_key_is_never_shown() -> None:
    assert "hidden-key" not in repr(ContextFirst(b"hidden-key"))
    assert "hidden-key" not in repr(SplitRules(trtllm_key=b"hidden-key"))


def test_the_key_is_what_stands_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b" hidden-key\n")
    settings = Settings.load({"PDROUTER_TRTLLM_AUTH_KEY_FILE": str(file)}, {})
    assert create_splits(settings).find("trtllm", None) == ContextFirst(b"hidden-key")
    assert "hidden-key" not in str(settings.show())


@pytest.mark.parametrize(("content", "problem"), [(None, "No such file"), (b" \n", "empty")])
def test_a_file_without_a_key_stops_the_start(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    settings = Settings.load({"PDROUTER_TRTLLM_AUTH_KEY_FILE": str(file)}, {})
    with pytest.raises(SettingInvalid, match=f"PDROUTER_TRTLLM_AUTH_KEY_FILE={file}: .*{problem}"):
        create_splits(settings)


@given(st.text(), st.one_of(st.none(), st.integers(0, 1023)))
def test_ids_are_of_the_range_that_engines_take(request_id: str, machine: int | None) -> None:
    number = number_request(request_id, machine)
    assert 2**42 <= number < 2**63
    assert number == number_request(request_id, machine)
    if machine is not None:
        assert number >> 53 == machine


def test_ids_of_attempts_and_of_machines_differ() -> None:
    ids = [f"0197-{number}" for number in range(1000)] + [f"0197-1-{n}" for n in range(2, 9)]
    for machine in (None, 0, 1023):
        assert len({number_request(each, machine) for each in ids}) == len(ids)
    assert len({number_request("a", machine) for machine in range(1024)}) == 1024


@pytest.mark.parametrize("connector", [None, "nixl", "shfs", "any"])
def test_the_label_names_the_engine_whatever_its_connector(connector: str | None) -> None:
    split = Splits(rules=SplitRules(trtllm_key=b"k", trtllm_machine=5)).find("trtllm", connector)
    assert split == ContextFirst(b"k", 5)
    assert WIRES["trtllm"] == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    others=st.dictionaries(st.from_regex(r"\Az_[a-z\u00e9]{1,6}\Z"), json_values, max_size=5),
    path=st.sampled_from([CHAT, COMPLETIONS]),
    ids=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    number=st.integers(2**42, 2**64 - 1),
    indent=st.sampled_from([None, 2]),
)
def test_untouched_members_reach_both_legs_byte_by_byte(
    others: dict[str, Any], path: str, ids: list[int], number: int, indent: int | None
) -> None:
    client = json.loads(make_body(path)) | others
    request = make_request(path, json.dumps(client, indent=indent).encode())
    told = answer(tell(ctx_request_id=number), prompt_token_ids=ids)
    side = make_request(path, bytes(SPLIT.side_body(Leg.PREFILL, request, PLACEMENT)))
    last = make_request(path, bytes(SPLIT.last_body(request, PLACEMENT, make_answers(told, POD))))
    for name in others:
        assert side.body.raw(name) == last.body.raw(name) == request.body.raw(name)
    assert json.loads(last.body.raw("disaggregated_params") or b"")["ctx_request_id"] == number
    prompt = "prompt" if path == COMPLETIONS else "prompt_token_ids"
    assert last.body.raw(prompt) == json.dumps(ids).encode()
    assert side.body.raw(request.prompt_name) == bytes(request.prompt)


def test_a_model_name_of_the_engines_own_is_on_both_legs() -> None:
    request = structs.replace(make_request(CHAT), engine_model="base")
    bodies = (
        SPLIT.side_body(Leg.PREFILL, request, PLACEMENT),
        SPLIT.last_body(request, PLACEMENT, make_answers(answer(), POD)),
    )
    assert [json.loads(bytes(body))["model"] for body in bodies] == ["base", "base"]
