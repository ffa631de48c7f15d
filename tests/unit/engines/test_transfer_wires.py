"""Wires whose legs meet by an id: NIXL push (Neuron's write mode), Mooncake and P2P."""

import json
from dataclasses import replace
from typing import Any

import pytest
from factories import (
    TWO_LEG_BODIES,
    make_answers,
    make_kv_params,
    make_pod,
    make_request,
)
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.cluster.pods import Pod, Rank, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.registry import SplitRules, Splits
from pdrouter.engines.split import (
    PEER_CHANGED,
    HandoffInvalid,
    Inquiry,
    Leg,
    Order,
    Placement,
    Split,
)
from pdrouter.engines.vllm.mooncake import Mooncake
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.engines.vllm.nixl_push import NixlPush
from pdrouter.engines.vllm.p2p import P2p
from pdrouter.settings.choices import CONNECTOR_NAMES, LegOrder, RemoteHostRewrite

CHAT = "/v1/chat/completions"
GENERATE = "/inference/v1/generate"
CLIENT = b'{ "model":"m",\n "messages":[{}], "max_tokens": 7, "seed": 1.0e3}'
POD = make_pod("p", ip="10.1.2.3")
POD_V6 = make_pod("p6", ip="fd00::5", bootstrap_port=9000)
PUSH, MOONCAKE, P2P = NixlPush(), Mooncake(), P2p()
WIRES = (PUSH, MOONCAKE, P2P)
NIXL_P2P = Splits().find("vllm", "nixl-p2p")
SOURCE = make_pod("s", ip="10.1.2.9", bootstrap_port=9000)
KNOWN = {
    "nixl-push": {
        "remote_engine_id": b'"engine-1"',
        "remote_host": b'"10.0.3.7"',
        "remote_port": b"5600",
        "tp_size": b"8",
        "transfer_mode": b'"push"',
    },
    "mooncake": {"0": b'"engine-1"'},
}


def place(
    wire: Split, pod: Pod = POD, request_id: str = "id-1", source: Pod | None = None
) -> Placement:
    pods = {Leg.PREFILL: pod, Leg.DECODE: make_pod("d", Role.DECODE)}
    return Placement(pods, request_id, KNOWN.get(wire.name, {}), source)


def read_id(body: bytes) -> Any:
    """The id by which a leg meets the other."""
    params = json.loads(body)["kv_transfer_params"]
    for role in ("remote_decoder", "remote_prefiller"):
        if role in params:
            return params[role]["kv_request_id"]
    return params["transfer_id"]


def make_push_params(**changes: Any) -> dict[str, Any]:
    """The handle of a prefill engine in push mode; `...` as a value leaves the member out."""
    params = {"remote_block_ids": ..., "transfer_mode": "push", "transfer_id": "id-1", **changes}
    return make_kv_params(**params)


def answer_with(params: Any) -> bytes:
    return json.dumps({"id": "cmpl-1", "choices": [], "kv_transfer_params": params}).encode()


def learn(**changes: Any) -> Any:
    (answer,) = make_answers(answer_with(make_push_params(**changes)), POD)
    return PUSH.learn_peer(answer)


# --- Bodies ---


def test_push_legs_both_have_the_id_of_the_transfer() -> None:
    request, placement = make_request(CHAT, CLIENT), place(PUSH)
    assert bytes(PUSH.side_body(Leg.PREFILL, request, placement)) == (
        b'{ "model":"m",\n "messages":[{}], "max_tokens": 1, "seed": 1.0e3,"stream":false,'
        b'"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,'
        b'"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null,'
        b'"transfer_id":"id-1"}}'
    )
    assert bytes(PUSH.last_body(request, placement, ())) == (
        CLIENT[:-1] + b',"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,'
        b'"remote_engine_id":"engine-1","remote_host":"10.0.3.7","remote_port":5600,"tp_size":8,'
        b'"transfer_mode":"push","remote_request_id":"id-1","transfer_id":"id-1"}}'
    )


def test_mooncakes_legs_have_the_id_of_the_transfer_and_the_engines() -> None:
    request, placement = make_request(CHAT, CLIENT), place(MOONCAKE)
    assert bytes(MOONCAKE.side_body(Leg.PREFILL, request, placement)) == (
        b'{ "model":"m",\n "messages":[{}], "max_tokens": 1, "seed": 1.0e3,"stream":false,'
        b'"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,'
        b'"transfer_id":"xfer-id-1"}}'
    )
    assert bytes(MOONCAKE.last_body(request, placement, ())) == (
        CLIENT[:-1] + b',"kv_transfer_params":{"do_remote_decode":false,"do_remote_prefill":true,'
        b'"remote_bootstrap_addr":"http://10.1.2.3:8998","remote_engine_id":"engine-1",'
        b'"transfer_id":"xfer-id-1"}}'
    )


@pytest.mark.parametrize(
    ("pod", "address"),
    [
        (POD, "http://10.1.2.3:8998"),
        (POD_V6, "http://[fd00::5]:9000"),
        (make_pod(ip="10.1.2.3", bootstrap_port=None), "http://10.1.2.3:8998"),
    ],
)
def test_decode_asks_at_the_prefill_pods_bootstrap_port(pod: Pod, address: str) -> None:
    body = bytes(MOONCAKE.last_body(make_request(CHAT), place(MOONCAKE, pod), ()))
    assert json.loads(body)["kv_transfer_params"]["remote_bootstrap_addr"] == address
    port = int(address.rpartition(":")[2])
    assert MOONCAKE.inquire(pod) == Inquiry(port, "/query", 5.0)


@pytest.mark.parametrize("member", sorted(TRANSFER_MEMBERS))
@pytest.mark.parametrize("path", TWO_LEG_BODIES)
@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
def test_a_clients_transfer_members_reach_no_engine(wire: Split, path: str, member: str) -> None:
    hidden: dict[str, Any] = {"vllm_xargs": {member: "evil", "keep": 1}}
    if path == GENERATE:
        hidden["sampling_params"] = {"extra_args": {member: "evil", "keep": 1}}
    request = make_request(path, **{member: "evil", **hidden})
    for body in (
        bytes(wire.side_body(Leg.PREFILL, request, place(wire))),
        bytes(wire.last_body(request, place(wire), ())),
    ):
        assert b"evil" not in body
        assert json.loads(body)["vllm_xargs"] == {"keep": 1}


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
@given(
    members=st.dictionaries(st.text(min_size=1, max_size=9).map("own_{}".format), _VALUES),
    spaces=st.booleans(),
    request_id=st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=64),
)
def test_what_a_client_writes_reaches_both_engines_as_it_is(
    wire: Split, members: dict[str, Any], spaces: bool, request_id: str
) -> None:
    separators = (" , ", " : ") if spaces else (",", ":")
    written = [
        f"{json.dumps(name)}{separators[1]}{json.dumps(value, separators=separators)}"
        for name, value in {"model": "m", "messages": [{}], **members}.items()
    ]
    request = make_request(CHAT, f"{{{separators[0].join(written)}}}".encode())
    placement = place(wire, request_id=request_id, source=SOURCE)
    side = bytes(wire.side_body(Leg.PREFILL, request, placement))
    last = bytes(wire.last_body(request, placement, ()))
    for each in written:
        assert each.encode() in side
        assert each.encode() in last
    assert read_id(side) == read_id(last)
    assert request_id in read_id(side)
    assert json.loads(last) == {
        **json.loads(bytes(request.body.edit())),
        "kv_transfer_params": json.loads(last)["kv_transfer_params"],
    }


# --- Push: what an answer says of its engine ---


def test_an_answer_says_whose_blocks_it_speaks_of() -> None:
    assert learn() == KNOWN["nixl-push"]


@pytest.mark.parametrize(
    "changes",
    [
        {"remote_request_id": "cmpl-2", "transfer_id": "id-2"},
        {"remote_num_tokens": 12, "remote_prefill_cached_tokens": 7, "remote_xfer_cookie": 2**60},
        {"remote_block_ids": [[1, 2]]},
    ],
)
def test_what_is_one_requests_own_is_not_the_engines(changes: dict[str, Any]) -> None:
    assert learn(**changes) == KNOWN["nixl-push"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("remote_engine_id", "engine-2"),
        ("remote_host", "10.0.3.8"),
        ("remote_port", 5601),
        ("tp_size", 4),
        ("pp_size", 2),
        ("remote_registration_generation", 1),
    ],
)
def test_another_engine_is_told_from_the_one_that_decode_waits_for(member: str, value: Any) -> None:
    assert learn(**{member: value}) not in (None, KNOWN["nixl-push"])
    (answer,) = make_answers(answer_with(make_push_params(**{member: value})), POD)
    with pytest.raises(HandoffInvalid) as caught:
        PUSH.check_companion(answer, place(PUSH))
    assert caught.value.reason == PEER_CHANGED


def test_a_host_that_leads_nowhere_is_known_as_the_pods() -> None:
    assert learn(remote_host="0.0.0.0")["remote_host"] == b'"10.1.2.3"'


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (None, "null-params"),
        (make_push_params(remote_engine_id=None), "incomplete-params"),
        (make_push_params(tp_size=...), "incomplete-params"),
        (make_push_params(remote_num_tokens=0), "empty-blocks"),
        (make_kv_params(), PEER_CHANGED),
    ],
)
def test_nothing_is_learnt_from_an_answer_that_decode_would_wait_on_in_vain(
    params: Any, reason: str
) -> None:
    (answer,) = make_answers(answer_with(params), POD)
    assert PUSH.learn_peer(answer) is None
    with pytest.raises(HandoffInvalid) as caught:
        PUSH.check_companion(answer, place(PUSH))
    assert caught.value.reason == reason


def test_decode_waits_for_the_engine_that_has_answered() -> None:
    (answer,) = make_answers(answer_with(make_push_params()), POD)
    PUSH.check_companion(answer, place(PUSH))


@pytest.mark.parametrize("params", [make_push_params(), make_kv_params()])
def test_one_leg_after_the_other_is_the_wire_of_either_mode(params: dict[str, Any]) -> None:
    request, answers = make_request(CHAT, CLIENT), make_answers(answer_with(params), POD)
    placement = structs.replace(place(PUSH), peer=None)
    assert bytes(PUSH.last_body(request, placement, answers)) == bytes(
        NixlPull().last_body(request, placement, answers)
    )


# --- Mooncake: ranks ---


def test_the_bootstrap_server_says_the_id_of_each_rank() -> None:
    said = b'{"0": {"engine_id": "a", "more": 1}, "1": {"engine_id": "\\u00e9\\""}}'
    assert MOONCAKE.read_peer(POD, said) == {"0": b'"a"', "1": '"é\\""'.encode()}


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"0": null}',
        b'{"0": {}}',
        b'{"0": {"engine_id": null}}',
        b'{"0": {"engine_id": ""}}',
        b'{"x": {"engine_id": "a"}}',
        '{"²": {"engine_id": "a"}}'.encode(),
        b'{"": {"engine_id": "a"}}',
        json.dumps({str(number): {"engine_id": "a"} for number in range(1025)}).encode(),
        b"[" * 100_000,
    ],
)
def test_what_names_no_rank_is_not_believed(said: bytes) -> None:
    with pytest.raises(HandoffInvalid) as caught:
        MOONCAKE.read_peer(POD, said)
    assert caught.value.reason == "invalid-ranks"


def test_both_legs_go_by_the_same_rank_and_all_ranks_get_their_share() -> None:
    peer = {str(number): b'"engine-%d"' % number for number in range(4)}
    request, counts = make_request(CHAT), dict.fromkeys(peer, 0)
    for number in range(400):
        placement = structs.replace(place(MOONCAKE, request_id=f"id-{number}"), peer=peer)
        (rank,) = MOONCAKE.side_headers(placement).values()
        params = json.loads(bytes(MOONCAKE.last_body(request, placement, ())))
        assert params["kv_transfer_params"]["remote_engine_id"] == f"engine-{rank}"
        counts[rank] += 1
    assert min(counts.values()) > 50
    assert MOONCAKE.side_headers(placement).keys() == {"x-data-parallel-rank"}


def test_a_pod_that_is_one_rank_of_several_has_that_ranks_id() -> None:
    said = b'{"0": {"engine_id": "a"}, "1": {"engine_id": "b"}}'
    first = replace(POD, rank=Rank(1, 2))
    peer = MOONCAKE.read_peer(first, said)
    placement = structs.replace(place(MOONCAKE, first), peer=peer)
    assert MOONCAKE.side_headers(placement) == {"x-data-parallel-rank": "1"}
    params = json.loads(bytes(MOONCAKE.last_body(make_request(CHAT), placement, ())))
    assert params["kv_transfer_params"]["remote_engine_id"] == "b"
    with pytest.raises(HandoffInvalid):
        MOONCAKE.read_peer(replace(POD, rank=Rank(2, 3)), said)


@pytest.mark.parametrize("peer", [None, {}])
def test_no_leg_is_written_for_an_engine_that_nobody_knows(peer: Any) -> None:
    with pytest.raises(HandoffInvalid):
        MOONCAKE.last_body(make_request(CHAT), structs.replace(place(MOONCAKE), peer=peer), ())


# --- P2P: sources and ports ---


def test_p2p_legs_have_an_id_and_decode_the_place_of_the_blocks() -> None:
    request, placement = make_request(CHAT, CLIENT), place(P2P)
    assert bytes(P2P.side_body(Leg.PREFILL, request, placement)) == (
        b'{ "model":"m",\n "messages":[{}], "max_tokens": 1, "seed": 1.0e3,"stream":false,'
        b'"kv_transfer_params":{"remote_decoder":{"kv_request_id":"kv-id-1"}}}'
    )
    assert bytes(P2P.last_body(request, placement, ())) == (
        CLIENT[:-1] + b',"kv_transfer_params":{"remote_prefiller":{"kv_request_id":"kv-id-1",'
        b'"remote_host":"10.1.2.3","remote_port":7777}}}'
    )


def test_a_prefill_leg_asks_its_source_under_an_id_of_its_own() -> None:
    request = make_request(CHAT, CLIENT)
    placement = place(P2P, source=SOURCE)
    assert bytes(P2P.side_body(Leg.PREFILL, request, placement)).endswith(
        b'"kv_transfer_params":{"remote_decoder":{"kv_request_id":"kv-id-1"},'
        b'"remote_kv_source":{"kv_request_id":"src-id-1","remote_host":"10.1.2.9",'
        b'"remote_port":9000}}}'
    )
    assert b"remote_kv_source" not in bytes(P2P.last_body(request, placement, ()))


def test_a_source_stands_beside_what_nixl_is_told() -> None:
    request = make_request(CHAT, CLIENT)
    without, beside = place(NIXL_P2P), place(NIXL_P2P, source=SOURCE)
    plain = bytes(NixlPull().side_body(Leg.PREFILL, request, without))
    assert bytes(NIXL_P2P.side_body(Leg.PREFILL, request, without)) == plain
    assert bytes(NIXL_P2P.side_body(Leg.PREFILL, request, beside)) == plain[:-2] + (
        b',"remote_kv_source":{"kv_request_id":"src-id-1","remote_host":"10.1.2.9",'
        b'"remote_port":9000}}}'
    )
    answers = make_answers(answer_with(make_kv_params()), POD)
    assert bytes(NIXL_P2P.last_body(request, beside, answers)) == bytes(
        NixlPull().last_body(request, without, answers)
    )


@pytest.mark.parametrize(
    ("pod", "place_of_blocks"),
    [
        (POD, ("10.1.2.3", 7777)),
        (POD_V6, ("fd00::5", 9000)),
        (make_pod(ip="10.1.2.3", bootstrap_port=None), ("10.1.2.3", 7777)),
        # Each rank has its port, whether or not it has one for requests too.
        (Ranks(size=4).split(POD)[3], ("10.1.2.3", 7780)),
        (Ranks((8000, 8001)).split(POD_V6)[1], ("fd00::5", 9001)),
    ],
)
def test_a_tier_has_its_port_on_each_rank(pod: Pod, place_of_blocks: tuple[str, int]) -> None:
    last = json.loads(bytes(P2P.last_body(make_request(CHAT), place(P2P, pod), ())))
    side = P2P.side_body(Leg.PREFILL, make_request(CHAT), place(P2P, source=pod))
    for told in (
        last["kv_transfer_params"]["remote_prefiller"],
        json.loads(bytes(side))["kv_transfer_params"]["remote_kv_source"],
    ):
        assert (told["remote_host"], told["remote_port"]) == place_of_blocks


def test_only_engines_with_a_tier_have_a_source() -> None:
    takes = {name for name in CONNECTOR_NAMES if Splits().find("vllm", name).takes_source}
    assert takes == {"offloading", "p2p", "nixl-p2p"}
    assert NIXL_P2P.order is Order.SERIAL
    told = Splits(rules=SplitRules(RemoteHostRewrite.ALWAYS, token_ids_limit=9))
    assert told.find("vllm", "nixl-p2p") == replace(
        told.find("vllm", "nixl"),  # type: ignore[type-var]
        name="nixl-p2p",
        takes_source=True,
    )


# --- Names and settings ---


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("nixl-push", "nixl-push"),
        ("neuron-write", "nixl-push"),
        ("mooncake", "mooncake"),
        ("offloading", "offloading"),
        ("p2p", "offloading"),
    ],
)
def test_names_of_the_wires(name: str, wire: str) -> None:
    split = Splits().find("vllm", name)
    assert (split.name, split.order) == (wire, Order.TOGETHER)
    serial = Splits(rules=SplitRules(leg_order=LegOrder.SERIAL)).find("vllm", name)
    assert (serial.name, serial.order) == (wire, Order.SERIAL)
    assert serial.needs_peer == (wire == "mooncake")
