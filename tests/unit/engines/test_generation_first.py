"""TensorRT-LLM, generation first: what both legs are told, and what a context engine says."""

import hashlib
import hmac
import json

import pytest
from factories import PLACEMENT, make_pod, make_request
from msgspec import structs

from pdrouter.engines.registry import SplitRules, Splits
from pdrouter.engines.split import HandoffInvalid, Leg, Order
from pdrouter.engines.trtllm.context_first import number_request
from pdrouter.engines.trtllm.generation_first import GenerationFirst
from pdrouter.settings.choices import TrtllmOrder

CHAT = "/v1/chat/completions"
NUMBER = number_request(PLACEMENT.request_id, 7)
SPLIT = GenerationFirst(b"k", 7)
POD = make_pod()
KNOWN = structs.replace(PLACEMENT, peer={"ctx_info_endpoint": b'"10.0.0.1:9"'})


def test_both_legs_have_the_id_and_the_clients_bytes() -> None:
    request = make_request(CHAT, b'{"model":"m", "messages":[{}], "stream":true,"seed": 1.0e3}')
    assert bytes(SPLIT.side_body(Leg.PREFILL, request, KNOWN)) == (
        b'{"model":"m", "messages":[{}], "stream":false,"seed": 1.0e3,"max_tokens":1,'
        b'"disaggregated_params":{"request_type":"context_only","disagg_request_id":%d,'
        b'"schedule_style":"generation_first"}}' % NUMBER
    )
    assert bytes(SPLIT.last_body(request, KNOWN, ())) == (
        b'{"model":"m", "messages":[{}], "stream":true,"seed": 1.0e3,'
        b'"disaggregated_params":{"request_type":"generation_only","ctx_request_id":%d,'
        b'"disagg_request_id":%d,"schedule_style":"generation_first",'
        b'"ctx_info_endpoint":"10.0.0.1:9"}}' % (NUMBER, NUMBER)
    )


def test_what_the_generation_engine_is_told_is_signed() -> None:
    signed = {"ctx_info_endpoint": "10.0.0.1:9", "encoded_opaque_state": None}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    digest = hmac.new(b"k", text, hashlib.sha256).hexdigest()
    assert SPLIT.last_headers(KNOWN, ()) == {"x-trtllm-disagg-auth": f"sha256={digest}"}
    assert GenerationFirst().last_headers(KNOWN, ()) == {}


@pytest.mark.parametrize("told", ['["a:1","b:2"]', '"a:1"', '[ "a:1" ]'])
def test_the_first_endpoint_of_a_context_engine_is_its_own(told: str) -> None:
    inquiry = SPLIT.inquire(POD)
    assert inquiry is not None
    assert (inquiry.port, inquiry.path) == (None, "/server_info")
    body = b'{"disaggregated_params":{"ctx_info_endpoint":%s}}' % told.encode()
    assert SPLIT.read_peer(POD, body) == {"ctx_info_endpoint": b'"a:1"'}


def test_the_generation_engine_is_told_all_that_the_context_engine_says_of_itself() -> None:
    said = (
        b'{"other": 1, "disaggregated_params": {"ctx_info_endpoint": ["a:1"], "ctx_dp_rank": 3,'
        b' "encoded_opaque_state": "c3RhdGU=", "later_member": {"a": [18446744073709551616]},'
        b' "draft_tokens": null, "disagg_request_id": 7, "request_type": "context_only"}}'
    )
    facts = SPLIT.read_peer(POD, said)
    placement = structs.replace(PLACEMENT, peer=facts)
    body = json.loads(bytes(SPLIT.last_body(make_request(CHAT), placement, ())))
    assert body["disaggregated_params"] == {
        "request_type": "generation_only",
        "ctx_request_id": NUMBER,
        "disagg_request_id": NUMBER,
        "schedule_style": "generation_first",
        "ctx_info_endpoint": "a:1",
        "ctx_dp_rank": 3,
        "encoded_opaque_state": "c3RhdGU=",
        "later_member": {"a": [18446744073709551616]},
    }
    signed = {"ctx_info_endpoint": "a:1", "encoded_opaque_state": "c3RhdGU="}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    digest = hmac.new(b"k", text, hashlib.sha256).hexdigest()
    assert SPLIT.last_headers(placement, ()) == {"x-trtllm-disagg-auth": f"sha256={digest}"}


def test_a_state_says_where_a_context_engine_is_as_well() -> None:
    body = b'{"disaggregated_params":{"encoded_opaque_state":"s","ctx_info_endpoint":null}}'
    assert SPLIT.read_peer(POD, body) == {"encoded_opaque_state": b'"s"'}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"disaggregated_params":null}', b'{"disaggregated_params":[]}'),
        b'{"disaggregated_params":{"ctx_info_endpoint":{}}}',
        b'{"disaggregated_params":{"ctx_info_endpoint":[7]}}',
        b'{"disaggregated_params":{"ctx_dp_rank":0}}',
        *(b'{"disaggregated_params":{"ctx_info_endpoint":%s}}' % told for told in (b"[]", b'""')),
        b'{"disaggregated_params":{"ctx_info_endpoint":null}}',
    ],
)
def test_an_engine_that_does_not_say_where_it_is_is_of_no_use(body: bytes) -> None:
    with pytest.raises(HandoffInvalid):
        SPLIT.read_peer(POD, body)
    with pytest.raises(HandoffInvalid):
        SPLIT.last_body(make_request(CHAT), PLACEMENT, ())


def test_a_setting_chooses_it() -> None:
    rules = SplitRules(trtllm_key=b"k", trtllm_machine=7, trtllm_order=TrtllmOrder.GENERATION_FIRST)
    split = Splits(rules=rules).find("trtllm", None)
    assert (split, split.order) == (SPLIT, Order.TOGETHER)
