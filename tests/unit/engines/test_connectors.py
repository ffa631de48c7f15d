"""How the KV connectors split a request: the exact bodies of both legs, and what is refused."""

import json
from bisect import bisect_left
from typing import Any

import pytest
from factories import (
    PLACEMENT,
    TWO_LEG_BODIES,
    make_answers,
    make_body,
    make_kv_params,
    make_pod,
    make_request,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS, find_locator, whole_body
from pdrouter.engines.neuron.legacy import NeuronLegacy
from pdrouter.engines.registry import SplitRules, Splits
from pdrouter.engines.split import HandoffInvalid, Leg, Split
from pdrouter.engines.vllm.nixl import NixlPull, is_unusable_host
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.usage import AnswerInvalid, read_answer
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.settings.choices import CONNECTOR_NAMES, NIXL_MEANINGS, RemoteHostRewrite

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
GENERATE = "/inference/v1/generate"
POD = make_pod(ip="10.1.2.3")
POD_V6 = make_pod(ip="fd00::5")
CONNECTORS: tuple[Split, ...] = (NixlPull(), NeuronLegacy())

# Spelled as the wire has it, so that the test is a judge of its own.
ASK_FOR_BLOCKS = (
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null,"transfer_id":"id-1"}'
)


def answer_with(params: Any) -> bytes:
    return json.dumps({"id": "cmpl-1", "choices": [], "kv_transfer_params": params}).encode()


def refuse(answer: bytes, connector: Split) -> HandoffInvalid:
    with pytest.raises(HandoffInvalid) as caught:
        bytes(connector.last_body(make_request(CHAT), PLACEMENT, make_answers(answer, POD)))
    return caught.value


_PREFILL: list[tuple[str, bytes, bytes]] = [
    (
        CHAT,
        b'{"model":"m","messages":[{}]}',
        b'{"model":"m","messages":[{}],"stream":false,"max_tokens":1}',
    ),
    (
        CHAT,
        b'{ "stream": true, "stream_options": {}, "model":"m",\n "messages":[{}], "seed": 1.0e3}',
        b'{ "stream": false, "model":"m",\n "messages":[{}], "seed": 1.0e3,"max_tokens":1}',
    ),
    (
        CHAT,
        b'{"max_completion_tokens": 9, "min_tokens": 5, "model":"m","messages":[{}]}',
        b'{"max_completion_tokens": 1, "model":"m","messages":[{}],"stream":false,"max_tokens":1}',
    ),
    (
        CHAT,
        b'{"model":"m","messages":[{}],"max_tokens":null,"n":1,"logprobs":true,"tools":[{}]}',
        b'{"model":"m","messages":[{}],"max_tokens":1,"n":1,"logprobs":true,"tools":[{}],"stream":false}',
    ),
    (
        COMPLETIONS,
        b'{"model":"m","prompt":"x","max_tokens":16,"best_of":1,"n":null,"temperature":0.10}',
        b'{"model":"m","prompt":"x","max_tokens":1,"best_of":1,"n":1,"temperature":0.10,"stream":false}',
    ),
    (
        MESSAGES,
        b'{"model":"m","messages":[{}],"max_tokens":1024,"stream":true,"thinking":{"budget_tokens":9}}',
        b'{"model":"m","messages":[{}],"max_tokens":1,"stream":false,"thinking":{"budget_tokens":9}}',
    ),
    (
        RESPONSES,
        b'{"model":"m","input":"x","store":false,"max_output_tokens":50,"max_tokens":8}',
        b'{"model":"m","input":"x","store":false,"max_output_tokens":1,"max_tokens":8,"stream":false}',
    ),
    (
        RESPONSES,
        b'{"model":"m","input":"x","store":false,"stream":true}',
        b'{"model":"m","input":"x","store":false,"stream":false,"max_output_tokens":1}',
    ),
    (
        GENERATE,
        b'{"model":"m","token_ids":[1,2]}',
        b'{"model":"m","token_ids":[1,2],"stream":false,"sampling_params":{"max_tokens":1}}',
    ),
    (
        GENERATE,
        b'{"model":"m","token_ids":[1,2],"sampling_params":null,"stream":true}',
        b'{"model":"m","token_ids":[1,2],"sampling_params":{"max_tokens":1},"stream":false}',
    ),
    (
        GENERATE,
        b'{"sampling_params":{ "min_tokens":4, "max_tokens" : 9 },"model":"m","token_ids":[1]}',
        b'{"sampling_params":{ "max_tokens" : 1 },"model":"m","token_ids":[1],"stream":false}',
    ),
    (
        GENERATE,
        b'{"model":"m","token_ids":[1],"min_tokens":4,"stream":null,"sampling_params":{"a":1.0}}',
        b'{"model":"m","token_ids":[1],"min_tokens":4,"stream":false,"sampling_params":{"a":1.0%s}}'
        % b',"max_tokens":1',
    ),
]


@pytest.mark.parametrize(("path", "client", "expected"), _PREFILL)
def test_the_prefill_leg_is_the_clients_body_for_one_token(
    path: str, client: bytes, expected: bytes
) -> None:
    assert (
        bytes(NeuronLegacy().side_body(Leg.PREFILL, make_request(path, client), PLACEMENT))
        == expected
    )


@pytest.mark.parametrize(("path", "client", "expected"), _PREFILL)
def test_nixls_prefill_leg_also_asks_the_engine_to_keep_the_blocks(
    path: str, client: bytes, expected: bytes
) -> None:
    body = bytes(NixlPull().side_body(Leg.PREFILL, make_request(path, client), PLACEMENT))
    assert body == expected[:-1] + b',"kv_transfer_params":' + ASK_FOR_BLOCKS + b"}"


def test_untouched_members_of_the_prefill_leg_keep_their_bytes() -> None:
    client = (
        b'{ "model" : "m" ,\t"messages":[{"content":"\\u00e9\\/","role":"user"}] , '
        b'"logit_bias":{"5":1.0e2},"cache_salt":"s" , "seed" : 9223372036854775807 }'
    )
    body = bytes(NeuronLegacy().side_body(Leg.PREFILL, make_request(CHAT, client), PLACEMENT))
    assert body == client[:-2] + b',"stream":false,"max_tokens":1 }'


# --- What a client must never be able to set ---


@pytest.mark.parametrize("member", sorted(TRANSFER_MEMBERS))
@pytest.mark.parametrize("path", TWO_LEG_BODIES)
@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda connector: connector.name)
def test_a_clients_transfer_members_reach_no_engine(
    connector: Split, path: str, member: str
) -> None:
    hidden: dict[str, Any] = {"vllm_xargs": {member: "evil", "keep": 1}}
    if path == GENERATE:
        hidden["sampling_params"] = {"extra_args": {member: "evil", "keep": 1}, "seed": 4}
    request = make_request(path, **{member: "evil", **hidden})
    bodies = {
        "prefill": bytes(connector.side_body(Leg.PREFILL, request, PLACEMENT)),
        "decode": bytes(
            connector.last_body(
                request, PLACEMENT, make_answers(answer_with(make_kv_params()), POD)
            )
        ),
        "whole": bytes(whole_body(request)),
    }
    for leg, body in bodies.items():
        assert b"evil" not in body, leg
        members = json.loads(body)
        assert members["vllm_xargs"] == {"keep": 1}
        if path == GENERATE:
            assert members["sampling_params"]["extra_args"] == {"keep": 1}
            assert members["sampling_params"]["seed"] == 4


@pytest.mark.parametrize(
    "spelled", ['"kv_transfer_p\\u0061rams"', '"\\u006b\\u0076_transfer_params"', '"rid"']
)
def test_an_escaped_spelling_hides_nothing(spelled: str) -> None:
    data = make_body(CHAT)[:-1] + f',{spelled}:"evil","vllm_xargs":{{{spelled}:"evil"}}}}'.encode()
    for body in (
        bytes(whole_body(make_request(CHAT, data))),
        bytes(NixlPull().side_body(Leg.PREFILL, make_request(CHAT, data), PLACEMENT)),
    ):
        assert b"evil" not in body


def test_members_that_hide_twice_are_all_removed() -> None:
    data = make_body(CHAT)[:-1] + b',"vllm_xargs":{"rid":"evil","a":1,"rid":"evil"}}'
    assert bytes(whole_body(make_request(CHAT, data))).endswith(b',"vllm_xargs":{"a":1}}')


@pytest.mark.parametrize(
    ("path", "holder", "param"),
    [
        (CHAT, '"vllm_xargs":%s', "vllm_xargs"),
        (GENERATE, '"sampling_params":{"extra_args":%s}', "extra_args"),
    ],
)
def test_a_holder_of_more_members_than_any_request_needs_is_refused(
    path: str, holder: str, param: str
) -> None:
    many = json.dumps({f"a{number}": 1 for number in range(1001)})
    data = make_body(path)[:-1] + f",{holder % many}}}".encode()
    with pytest.raises(RequestRejected) as caught:
        bytes(whole_body(make_request(path, data)))
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("value", [b"null", b"[]", b'"kv_transfer_params"', b'{ "a":1.0 }', b"{}"])
def test_holders_that_hide_nothing_keep_their_bytes(value: bytes) -> None:
    data = make_body(CHAT)[:-1] + b',"vllm_xargs":%s}' % value
    assert whole_body(make_request(CHAT, data)).parts == (data,)
    data = make_body(GENERATE)[:-1] + b',"sampling_params":{"extra_args":%s}}' % value
    assert whole_body(make_request(GENERATE, data)).parts == (data,)


@pytest.mark.parametrize("path", TWO_LEG_BODIES)
def test_a_whole_request_without_transfer_members_is_the_clients_very_bytes(path: str) -> None:
    data = make_body(path, stream=True, n=3, min_tokens=2, max_tokens=77)
    body = whole_body(make_request(path, data))
    assert body.unchanged
    assert body.parts == (data,)


# --- The decode leg ---


@pytest.mark.parametrize("path", TWO_LEG_BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_the_decode_leg_is_the_clients_body_with_the_handle_verbatim(
    path: str, stream: bool
) -> None:
    data = make_body(path, stream=stream, min_tokens=2, user="u")
    handle = (
        b'{"do_remote_prefill":true,"remote_block_ids":[[1,2], [9223372036854775807]],'
        b'"remote_engine_id":"\\u00e9","remote_request_id":"r","remote_host":"10.0.0.9",'
        b'"remote_port":5600,"big":18446744073709551615,"bigger":123456789012345678901234567890,'
        b'"ratio":1.50,"new_in_some_release":{ "a":[null]}}'
    )
    answer = b'{"id":"x", "kv_transfer_params" : ' + handle + b' ,"usage":{}}'
    body = bytes(
        NixlPull().last_body(make_request(path, data), PLACEMENT, make_answers(answer, POD))
    )
    assert body == data[:-1] + b',"kv_transfer_params":' + handle + b"}"


def test_the_decode_leg_gets_the_engines_handle_in_place_of_a_clients() -> None:
    data = b'{"kv_transfer_params":{"remote_host":"evil"},"model":"m","messages":[{}],"rid":"evil"}'
    params = make_kv_params()
    body = bytes(
        NixlPull().last_body(
            make_request(CHAT, data), PLACEMENT, make_answers(answer_with(params), POD)
        )
    )
    assert json.loads(body) == {"kv_transfer_params": params, "model": "m", "messages": [{}]}


_HANDLES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"remote_request_id": ...}, None),
    ({"remote_block_ids": [0]}, None),
    ({"remote_block_ids": [17, 18]}, None),
    ({"remote_block_ids": [[], [1]]}, None),
    ({"remote_block_ids": [2**63, 2**70]}, None),
    ({"remote_block_ids": {"layout": "of another release"}}, None),
    ({"remote_block_ids": [{"group": 0, "ids": [1]}]}, None),
    ({"remote_port": "5600"}, None),
    ({"do_remote_prefill": ...}, "incomplete-params"),
    ({"do_remote_prefill": None}, "incomplete-params"),
    ({"do_remote_prefill": False}, "incomplete-params"),
    ({"do_remote_prefill": 1}, "incomplete-params"),
    ({"do_remote_prefill": "true"}, "incomplete-params"),
    ({"remote_block_ids": ...}, "empty-blocks"),
    ({"remote_block_ids": None}, "empty-blocks"),
    ({"remote_block_ids": []}, "empty-blocks"),
    ({"remote_block_ids": [[]]}, "empty-blocks"),
    ({"remote_block_ids": [[], [], []]}, "empty-blocks"),
    ({"remote_block_ids": {}}, "empty-blocks"),
    ({"remote_block_ids": ""}, "empty-blocks"),
    ({"remote_block_ids": [[], {}, [[]]]}, "empty-blocks"),
    ({"remote_engine_id": ...}, "incomplete-params"),
    ({"remote_engine_id": None}, "incomplete-params"),
    ({"remote_engine_id": ""}, "incomplete-params"),
    ({"remote_request_id": None}, "incomplete-params"),
    ({"remote_request_id": ""}, "incomplete-params"),
    ({"remote_host": ...}, "incomplete-params"),
    ({"remote_host": None}, "incomplete-params"),
    ({"remote_host": 7}, "incomplete-params"),
    ({"remote_host": ["10.0.0.1"]}, "incomplete-params"),
    ({"remote_port": ...}, "incomplete-params"),
    ({"remote_port": None}, "incomplete-params"),
    ({"remote_port": ""}, "incomplete-params"),
]


@pytest.mark.parametrize("policy", RemoteHostRewrite)
@pytest.mark.parametrize(("changes", "reason"), _HANDLES)
def test_a_half_filled_handle_never_reaches_a_decode_engine(
    changes: dict[str, Any], reason: str | None, policy: RemoteHostRewrite
) -> None:
    connector = NixlPull(policy)
    answer = answer_with(make_kv_params(**changes))
    if reason is None:
        assert bytes(connector.last_body(make_request(CHAT), PLACEMENT, make_answers(answer, POD)))
    else:
        assert refuse(answer, connector).reason == reason


def _answer_in_latin_1(**changes: Any) -> bytes:
    return answer_with(make_kv_params(**changes)).replace(rb"\u00ff", b"\xff")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "invalid-answer"),
        (b"[]", "invalid-answer"),
        (b"<html>", "invalid-answer"),
        (b'{"kv_transfer_params":', "invalid-answer"),
        (_answer_in_latin_1(remote_host="\xff"), "incomplete-params"),
        (_answer_in_latin_1(remote_engine_id="\xff"), "invalid-params"),
        (b'{"kv_transfer_params":{"\xff":"a"}}', "invalid-answer"),
        (b"{}", "null-params"),
        (b'{"choices":[{"kv_transfer_params":{}}]}', "null-params"),
        (b'{"kv_transfer_params":null}', "null-params"),
        (b'{"kv_transfer_params":[]}', "invalid-answer"),
        (b'{"kv_transfer_params":"x"}', "invalid-answer"),
        (b'{"kv_transfer_params":true}', "invalid-answer"),
        (b'{"kv_transfer_params":{}}', "incomplete-params"),
    ],
)
def test_an_answer_without_a_handle_is_refused(answer: bytes, reason: str) -> None:
    refused = refuse(answer, NixlPull())
    assert refused.reason == reason
    assert str(refused)


def test_a_handle_that_could_be_read_can_be_handed_over_wherever_that_is() -> None:
    """How deep is too deep depends on the calls under way: an answer may have passed before."""

    def read_deeper(answer: LegAnswer, calls: int) -> None:
        if calls:
            read_deeper(answer, calls - 1)
        else:
            NixlPull().take_handle(answer)

    def write_answer(depth: int) -> bytes:
        nested = b'"kv_transfer_params": {"a":' + b"[" * depth + b"]" * depth + b","
        return answer_with(make_kv_params()).replace(b'"kv_transfer_params": {', nested)

    def is_refused(depth: int) -> bool:
        try:
            read_answer(write_answer(depth))
        except AnswerInvalid:
            return True
        return False

    too_deep = bisect_left(range(100_000), True, key=is_refused)
    assert 100 < too_deep < 100_000
    for depth in range(too_deep - 100, too_deep):
        body = write_answer(depth)
        (answer,) = make_answers(body, POD)
        read_deeper(structs.replace(answer, members=read_answer(body)), 10)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(make_kv_params())),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()
            ),
            lambda inner: (
                st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_any_handle_is_handed_over_or_refused(changes: dict[str, Any]) -> None:
    answer = answer_with(make_kv_params(**changes))
    for policy in RemoteHostRewrite:
        try:
            body = bytes(
                NixlPull(policy).last_body(make_request(CHAT), PLACEMENT, make_answers(answer, POD))
            )
        except HandoffInvalid:
            continue
        assert json.loads(body)["kv_transfer_params"]["do_remote_prefill"] is True


# --- remote_host ---

_UNUSABLE = [
    *("localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "0.0.0.0", "::", "::1"),
    *("0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"),
]
_USABLE = ["10.0.0.9", "fd00::9", "engine-0.engines", "localhost.example.com", "::ffff:10.0.0.9"]


@pytest.mark.parametrize("host", ["", *_UNUSABLE])
def test_hosts_that_mean_the_machine_on_which_they_are_read(host: str) -> None:
    assert is_unusable_host(host)


@pytest.mark.parametrize("host", _USABLE)
def test_hosts_that_lead_to_a_machine(host: str) -> None:
    assert not is_unusable_host(host)


def _rewrite_cases() -> list[tuple[RemoteHostRewrite, str, bool]]:
    auto, always, never = RemoteHostRewrite
    return [
        *((auto, host, True) for host in ("", *_UNUSABLE)),
        *((auto, host, False) for host in _USABLE),
        *((always, host, True) for host in ("", *_UNUSABLE, *_USABLE)),
        *((never, host, False) for host in (*_UNUSABLE, *_USABLE)),
    ]


@pytest.mark.parametrize(("policy", "host", "rewritten"), _rewrite_cases())
@pytest.mark.parametrize("pod", [POD, POD_V6], ids=["ipv4", "ipv6"])
def test_remote_host_is_rewritten_by_policy_and_the_port_is_kept(
    pod: Any, policy: RemoteHostRewrite, host: str, rewritten: bool
) -> None:
    params = make_kv_params(remote_host=host)
    body = bytes(
        NixlPull(policy).last_body(
            make_request(CHAT), PLACEMENT, make_answers(answer_with(params), pod)
        )
    )
    expected = {**params, "remote_host": pod.ip if rewritten else host}
    assert json.loads(body)["kv_transfer_params"] == expected
    assert list(json.loads(body)["kv_transfer_params"]) == list(params)


@pytest.mark.parametrize("changes", [{}, {"transfer_mode": "push", "tp_size": 1}])
def test_neurons_side_channel_is_sought_at_the_prefill_pod(changes: dict[str, Any]) -> None:
    """Its engines say 127.0.0.1:5557 unless told otherwise, in read mode and in write mode."""
    params = make_kv_params(remote_host="127.0.0.1", remote_port=5557, **changes)
    for name in ("nixl", "neuron-write"):
        split = Splits().find("vllm", name)
        answers = make_answers(answer_with(params), POD)
        body = json.loads(bytes(split.last_body(make_request(CHAT), PLACEMENT, answers)))
        handle = body["kv_transfer_params"]
        assert (handle["remote_host"], handle["remote_port"]) == (POD.ip, 5557)


def test_an_empty_remote_host_that_must_not_be_rewritten_is_a_half_filled_handle() -> None:
    answer = answer_with(make_kv_params(remote_host=""))
    assert refuse(answer, NixlPull(RemoteHostRewrite.NEVER)).reason == "incomplete-params"


def test_a_rewritten_handle_keeps_the_bytes_of_everything_else() -> None:
    handle = (
        b'{"do_remote_prefill":true,"remote_block_ids":[18446744073709551615, 1],"remote_host":'
        b'"0.0.0.0","remote_port":5601,"remote_engine_id":"e","ratio":1.50}'
    )
    body = bytes(
        NixlPull().last_body(
            make_request(CHAT), PLACEMENT, make_answers(b'{"kv_transfer_params":%s}' % handle, POD)
        )
    )
    assert handle.replace(b"0.0.0.0", b"10.1.2.3") in body


@pytest.mark.parametrize("host", ["10.9.9.9", "localhost"])
def test_a_handle_of_very_many_members_is_handed_over(host: str) -> None:
    many = {f"member-{number}": number for number in range(1_001)}
    params = make_kv_params(remote_host=host, **many)
    body = bytes(
        NixlPull().last_body(make_request(CHAT), PLACEMENT, make_answers(answer_with(params), POD))
    )
    rewritten = host if host == "10.9.9.9" else POD.ip
    assert json.loads(body)["kv_transfer_params"] == {**params, "remote_host": rewritten}
    assert release(NixlPull(), params) is not None


def test_a_handle_within_very_many_other_members_is_handed_over() -> None:
    params = make_kv_params()
    logprobs = b'"choices": [%s]' % b",".join([b'{"1":{"logprob":-1}}'] * 5_000)
    answer = answer_with(params).replace(b'"choices": []', logprobs)
    body = bytes(NixlPull().last_body(make_request(CHAT), PLACEMENT, make_answers(answer, POD)))
    assert json.loads(body)["kv_transfer_params"] == params


def test_a_handle_of_more_members_than_any_is_refused() -> None:
    params = make_kv_params(**{f"member-{number}": number for number in range(4_001)})
    assert refuse(answer_with(params), NixlPull()).reason == "invalid-answer"


# --- The older Neuron wire ---


def test_the_legacy_decode_leg_carries_the_whole_answer_verbatim() -> None:
    data = make_body(CHAT, stream=True, disagg_prefill_resp="evil")
    answer = b'{ "id":"x", "usage":{"total_tokens":18446744073709551615} , "kv":{"a":1.0} }'
    body = bytes(
        NeuronLegacy().last_body(
            make_request(CHAT, data), PLACEMENT, make_answers(b"\n" + answer + b" ", POD)
        )
    )
    assert body == data.replace(b'"evil"', answer)


@pytest.mark.parametrize("answer", [b"", b"null", b"[1]", b"oops", b'{"a":"\xff"}'])
def test_the_legacy_decode_leg_takes_only_an_object(answer: bytes) -> None:
    assert refuse(answer, NeuronLegacy()).reason == "invalid-answer"


# --- Names ---


@pytest.mark.parametrize(
    ("default", "nixl_means", "name", "expected"),
    [
        ("shfs", "nixl", None, "nixl"),
        ("shfs", "nixl", "shfs", "nixl"),
        ("shfs", "nixl", "nixl", "nixl"),
        ("shfs", "nixl", "neuron-legacy", "neuron-legacy"),
        ("nixl", "neuron-legacy", None, "neuron-legacy"),
        ("shfs", "neuron-legacy", "nixl", "neuron-legacy"),
        ("shfs", "neuron-legacy", "shfs", "nixl"),
        ("shfs", "neuron-legacy", None, "nixl"),
        ("neuron-legacy", "nixl", None, "neuron-legacy"),
    ],
)
def test_what_the_names_of_connectors_mean(
    default: str, nixl_means: str, name: str | None, expected: str
) -> None:
    assert Splits(default, nixl_means).find("vllm", name).name == expected


@pytest.mark.parametrize("meaning", NIXL_MEANINGS)
@pytest.mark.parametrize("name", CONNECTOR_NAMES)
def test_every_name_that_may_be_configured_is_known(name: str, meaning: str) -> None:
    connectors = Splits(name, meaning)
    assert connectors.find("vllm", name) == connectors.find("vllm", None)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError):
        Splits().find("vllm", "lmcache")
    with pytest.raises(KeyError):
        Splits("lmcache").find("vllm", None)
    with pytest.raises(KeyError):
        Splits().find("lmdeploy", None)


def test_the_rewrite_policy_reaches_the_connector() -> None:
    connector = Splits(rules=SplitRules(RemoteHostRewrite.NEVER)).find("vllm", "nixl")
    params = make_kv_params(remote_host="localhost")
    body = bytes(
        connector.last_body(make_request(CHAT), PLACEMENT, make_answers(answer_with(params), POD))
    )
    assert json.loads(body)["kv_transfer_params"]["remote_host"] == "localhost"


# --- Releases ---


def release(connector: Split, params: Any) -> dict[str, Any] | None:
    (answer,) = make_answers(answer_with(params), POD)
    found = connector.release(answer)
    if found is None:
        return None
    assert found.path == COMPLETIONS
    body: dict[str, Any] = json.loads(bytes(found.body))
    return body


def test_a_release_is_a_request_that_every_engine_refuses_without_computing_anything() -> None:
    params = make_kv_params(cookie=2**63 + 1)
    body = release(NixlPull(), params)
    assert body is not None
    assert body.pop("kv_transfer_params") == params
    # Wrong twice, and by members that vLLM's request model lets pass.
    assert body["model"] == "pdrouter-release"
    assert body["min_tokens"] > body["max_tokens"] == 1
    # If it were served after all: shorter than any block that a cache keeps.
    assert body["prompt"] == [0]
    assert body.keys() == {"model", "prompt", "max_tokens", "min_tokens", "stream"}


def test_a_release_names_the_host_that_a_decode_leg_would() -> None:
    body = release(NixlPull(), make_kv_params(remote_host="localhost"))
    assert body is not None
    assert body["kv_transfer_params"]["remote_host"] == POD.ip


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(None, id="null"),
        pytest.param(make_kv_params(remote_block_ids=[]), id="no blocks"),
        *(
            pytest.param(make_kv_params(**{name: ...}), id=f"without {name}")
            for name in (
                "do_remote_prefill",
                "remote_block_ids",
                "remote_engine_id",
                "remote_request_id",
                "remote_host",
                "remote_port",
            )
        ),
    ],
)
def test_what_an_engine_could_not_be_told_of_is_not_released(params: Any) -> None:
    assert release(NixlPull(), params) is None


def test_the_older_neuron_wire_has_no_release() -> None:
    assert release(NeuronLegacy(), make_kv_params()) is None


# --- Push mode: the prefill engine writes the blocks ---


def make_push_params(**changes: Any) -> dict[str, Any]:
    """The handle of a prefill engine in push mode; `...` as a value leaves the member out."""
    push = {"transfer_mode": "push", "tp_size": 8, "remote_num_tokens": 96}
    params = make_kv_params(**{**push, **changes})
    if "remote_block_ids" not in changes:
        del params["remote_block_ids"]
    return params


def hand_over(params: dict[str, Any]) -> dict[str, Any]:
    answers = make_answers(answer_with(params), POD)
    body = bytes(NixlPull().last_body(make_request(CHAT), PLACEMENT, answers))
    handed: dict[str, Any] = json.loads(body)["kv_transfer_params"]
    return handed


def test_a_push_handle_has_no_blocks_and_meets_the_prefill_leg_by_its_id() -> None:
    asked = json.loads(bytes(NixlPull().side_body(Leg.PREFILL, make_request(CHAT), PLACEMENT)))
    params = make_push_params()
    assert hand_over(params) == {
        **params,
        "transfer_id": asked["kv_transfer_params"]["transfer_id"],
    }


def test_an_engine_that_says_the_id_of_a_transfer_knows_it_best() -> None:
    params = make_push_params(transfer_id="its-own")
    assert hand_over(params) == params


def test_blocks_that_a_push_handle_lists_are_not_fetched() -> None:
    handed = hand_over(make_push_params(remote_block_ids=[[1, 2]]))
    assert "remote_block_ids" not in handed
    assert handed["transfer_mode"] == "push"


def test_a_host_that_leads_nowhere_becomes_the_prefill_pods_in_push_mode_too() -> None:
    assert hand_over(make_push_params(remote_host="127.0.0.1"))["remote_host"] == POD.ip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"remote_block_ids": []}, "empty-blocks"),
        ({"remote_block_ids": [[]]}, "empty-blocks"),
        ({"remote_num_tokens": 0}, "empty-blocks"),
        *(
            ({name: value}, "incomplete-params")
            for name in (
                "do_remote_prefill",
                "remote_engine_id",
                "remote_port",
                "remote_request_id",
                "tp_size",
                "remote_host",
            )
            for value in (..., None)
        ),
    ],
)
def test_a_push_handle_that_a_decode_engine_would_wait_on_for_ever_is_not_sent(
    changes: dict[str, Any], reason: str
) -> None:
    assert refuse(answer_with(make_push_params(**changes)), NixlPull()).reason == reason


def test_an_empty_block_list_without_push_mode_stays_of_no_use() -> None:
    params = make_kv_params(transfer_mode="pull", remote_block_ids=[])
    assert refuse(answer_with(params), NixlPull()).reason == "empty-blocks"


@pytest.mark.parametrize(
    ("member", "expiry"),
    [
        (b'"remote_blocks_expiry_time": 1790000000.25', 1790000000.25),
        (b'"remote_blocks_expiry_time":12', 12.0),
        (b'"remote_blocks_expiry_time": null', None),
        (b'"remote_blocks_expiry_time": "1"', None),
        (b'"a": "\\"remote_blocks_expiry_time\\": 1790000000"', None),
        (b'"a": 1', None),
    ],
)
def test_the_end_of_a_lease_is_found_where_the_engine_says_it(
    member: bytes, expiry: float | None
) -> None:
    (answer,) = make_answers(b'{"kv_transfer_params": {%s}}' % member, POD)
    assert NixlPull().find_expiry(answer) == expiry
    assert NeuronLegacy().find_expiry(answer) is None


# --- What a trusted router in front may set ---

LOCATOR = b'{"host": "10.0.0.9", "id": 12345678901234567890}'


def make_located(params: bytes) -> bytes:
    return (
        b'{"model":"m","token_ids":[1],"kv_transfer_params":{"ec_locator":"evil"},'
        b'"sampling_params":{"max_tokens":4,"extra_args":{"a":1,"kv_transfer_params":%s,"rid":"evil"}}}'
        % params
    )


def test_a_trusted_locator_reaches_the_pod_that_serves_a_request_whole() -> None:
    data = make_located(
        b'{"do_remote_prefill":true,"ec_locator":%s,"remote_host":"evil"}' % LOCATOR
    )
    request = make_request(GENERATE, data)
    assert find_locator(request) == LOCATOR
    trusted = request.trust_locator(LOCATOR)
    assert trusted.whole == "ec-locator"
    assert bytes(whole_body(trusted)) == (
        b'{"model":"m","token_ids":[1],"sampling_params":{"max_tokens":4,"extra_args":'
        b'{"a":1,"kv_transfer_params":{"ec_locator":%s}}}}' % LOCATOR
    )
    # Without trust, as ever.
    assert b"ec_locator" not in bytes(whole_body(request))
    for body in (
        NixlPull().side_body(Leg.PREFILL, trusted, PLACEMENT),
        NeuronLegacy().side_body(Leg.PREFILL, trusted, PLACEMENT),
    ):
        assert b"ec_locator" not in bytes(body)


@pytest.mark.parametrize("params", [b"{}", b"null", b"3", b'"ec_locator"', b'{"other":1}'])
def test_a_locator_that_is_not_there_is_not_found(params: bytes) -> None:
    assert find_locator(make_request(GENERATE, make_located(params))) is None


@pytest.mark.parametrize("sampling", [b"null", b"{}", b'{"extra_args":[]}', b'{"extra_args":null}'])
def test_without_extra_arguments_there_is_no_locator(sampling: bytes) -> None:
    data = b'{"model":"m","token_ids":[1],"sampling_params":%s}' % sampling
    assert find_locator(make_request(GENERATE, data)) is None
    assert find_locator(make_request(CHAT)) is None
