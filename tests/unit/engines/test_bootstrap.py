"""SGLang's wire: the exact bodies of both legs, and the rooms in which they meet."""

import json
from dataclasses import replace
from typing import Any

import pytest
from factories import MODEL, TWO_LEG_BODIES, make_body, make_pod, make_request
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import UNSAID_PORT, Rank, Role
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.registry import WIRES, Splits
from pdrouter.engines.sglang.bootstrap import MOST_ITEMS, Bootstrap
from pdrouter.engines.split import Leg, Order, Placement
from pdrouter.openai.body import Body
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.request import InferenceRequest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
SPLIT = Bootstrap()
MEETING = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


def place(request_id: str = "id-1", port: int | None = 8998, ip: str = "10.0.0.7") -> Placement:
    prefill = make_pod("p", ip=ip, engine="sglang", bootstrap_port=port)
    decode = make_pod("d", Role.DECODE, ip="10.0.0.8", engine="sglang", bootstrap_port=1)
    return Placement({Leg.PREFILL: prefill, Leg.DECODE: decode}, request_id)


def split(request: InferenceRequest, placement: Placement | None = None) -> bytes:
    """The body of both legs, which must be one."""
    placement = placement or place()
    side = bytes(SPLIT.side_body(Leg.PREFILL, request, placement))
    assert side == bytes(SPLIT.last_body(request, placement, ()))
    return side


def rooms(request: InferenceRequest, placement: Placement | None = None) -> list[int]:
    """The rooms of a request; hosts and ports must be as many."""
    members = json.loads(split(request, placement))
    host, port, room = (members[name] for name in MEETING)
    if not isinstance(room, list):
        assert not isinstance(host, list)
        assert not isinstance(port, list)
        return [room]
    assert host == ["10.0.0.7"] * len(room)
    assert port == [8998] * len(room)
    return room


def test_the_legs_get_the_clients_bytes_and_where_they_meet() -> None:
    data = b'{ "model":"m", "messages":[{"role":"user"}],  "seed": 1.0e3, "stream": true }'
    body = split(make_request(CHAT, data))
    room = json.loads(body)["bootstrap_room"]
    added = b',"bootstrap_host":"10.0.0.7","bootstrap_port":8998,"bootstrap_room":%d }' % room
    assert body == data.removesuffix(b" }") + added


def test_the_wire_is_sglangs_whatever_connector_is_configured() -> None:
    assert WIRES["sglang"] == ()
    assert Splits("nixl").find("sglang", None).name == "bootstrap"
    assert Splits("shfs").find("sglang", "mooncake").name == "bootstrap"
    assert SPLIT.order is Order.TOGETHER
    with pytest.raises(KeyError):
        Splits().find("other", None)


def test_who_names_no_port_has_sglangs_own() -> None:
    body = json.loads(split(make_request(CHAT), place(port=UNSAID_PORT)))
    assert body["bootstrap_port"] == 8998
    several = json.loads(split(make_request(CHAT, n=2), place(port=UNSAID_PORT)))
    assert several["bootstrap_port"] == [8998, 8998]


def test_an_engine_may_be_left_its_own_default_port() -> None:
    body = json.loads(split(make_request(CHAT), place(port=None)))
    assert body["bootstrap_port"] is None
    several = json.loads(split(make_request(CHAT, n=2), place(port=None)))
    assert several["bootstrap_port"] == [None, None]


def test_data_parallel_ranks_are_named_to_both_legs() -> None:
    prefill = replace(make_pod("p", engine="sglang"), rank=Rank(3, 4))
    decode = replace(make_pod("d", Role.DECODE, engine="sglang"), rank=Rank(1, 2))
    placement = Placement({Leg.PREFILL: prefill, Leg.DECODE: decode}, "id-1")
    request = make_request(CHAT)
    side = json.loads(bytes(SPLIT.side_body(Leg.PREFILL, request, placement)))
    last = json.loads(bytes(SPLIT.last_body(request, placement, ())))
    assert side["routed_dp_rank"] == last.pop("disagg_prefill_dp_rank") == 3
    assert last.pop("routed_dp_rank") == 1
    del side["routed_dp_rank"]
    assert side == last


@pytest.mark.parametrize("ranks", [2, 3, 8, 256])
@pytest.mark.parametrize("n", [1, 5])
def test_rooms_are_those_of_the_rank_that_is_to_have_them(ranks: int, n: int) -> None:
    """Prefill engines fail rooms whose remainder is another rank's (`follow_bootstrap_room`)."""
    known: set[int] = set()
    for attempt in range(40):
        rank = Rank(attempt % ranks, ranks)
        prefill = replace(make_pod("p", engine="sglang"), rank=rank)
        decode = make_pod("d", Role.DECODE, engine="sglang")
        placement = Placement({Leg.PREFILL: prefill, Leg.DECODE: decode}, f"id-{attempt}")
        body = json.loads(bytes(SPLIT.last_body(make_request(CHAT, n=n), placement, ())))
        rooms = body["bootstrap_room"] if n > 1 else [body["bootstrap_room"]]
        assert {room % ranks for room in rooms} == {rank.number}
        assert all(0 <= room < 2**63 for room in rooms)
        known.update(rooms)
    assert len(known) == 40 * n


def test_an_ipv6_address_has_brackets() -> None:
    body = json.loads(split(make_request(CHAT), place(ip="fd00::7")))
    assert body["bootstrap_host"] == "[fd00::7]"
    several = json.loads(split(make_request(CHAT, n=2), place(ip="fd00::7")))
    assert several["bootstrap_host"] == ["[fd00::7]"] * 2


@pytest.mark.parametrize(
    ("path", "members", "items"),
    [
        (CHAT, {}, 1),
        (CHAT, {"n": 1}, 1),
        (CHAT, {"n": 3}, 3),
        (CHAT, {"n": "3"}, 3),
        (CHAT, {"n": 2.0}, 2),
        (CHAT, {"n": None}, 1),
        (CHAT, {"n": 0}, 1),
        (CHAT, {"n": -4}, 1),
        (CHAT, {"n": "many"}, 1),
        (CHAT, {"n": 2, "messages": [{}, {}, {}]}, 2),
        (COMPLETIONS, {"prompt": "x"}, 1),
        (COMPLETIONS, {"prompt": ["x"]}, 1),
        (COMPLETIONS, {"prompt": ["x", "y"]}, 2),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": [[1, 2], [3], [4]]}, 3),
        (COMPLETIONS, {"prompt": ["x", "y"], "n": 2}, 4),
        (COMPLETIONS, {"prompt": ["x"], "n": MOST_ITEMS}, MOST_ITEMS),
        ("/v1/responses", {"input": [{"role": "user", "content": "x"}] * 2, "store": False}, 1),
        ("/inference/v1/generate", {"sampling_params": {"n": 2}}, 2),
        ("/generate", {}, 1),
        ("/generate", {"text": ["x", "y"]}, 2),
        ("/generate", {"text": ..., "input_ids": [1, 2]}, 1),
        ("/generate", {"text": ..., "input_ids": [[1], [2], [3]]}, 3),
        ("/generate", {"text": ["x", "y"], "sampling_params": {"n": 3}}, 6),
        ("/generate", {"n": 3}, 1),
    ],
)
def test_each_choice_of_each_prompt_has_a_room(
    path: str, members: dict[str, Any], items: int
) -> None:
    found = rooms(make_request(path, **members))
    assert len(found) == len(set(found)) == items
    assert all(0 <= room < 2**63 for room in found)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": MOST_ITEMS + 1}, "n"),
        ({"n": 10**4000}, "n"),
        ({"prompt": ["x"] * (MOST_ITEMS + 1)}, "prompt"),
        ({"prompt": ["x"] * MOST_ITEMS, "n": 2}, "n"),
    ],
)
def test_more_rooms_than_any_engine_has_slots_are_refused(
    members: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        split(make_request(COMPLETIONS, **members))
    assert (caught.value.status, caught.value.param) == (400, param)


@given(
    first=st.tuples(st.uuids(), st.integers(1, 40)),
    second=st.tuples(st.uuids(), st.integers(1, 40)),
)
def test_no_two_attempts_share_a_room(first: tuple[Any, int], second: tuple[Any, int]) -> None:
    used: list[int] = []
    for request_id in dict.fromkeys([str(first[0]), f"{first[0]}-2", str(second[0])]):
        used += rooms(make_request(CHAT, n=first[1] + 1), place(request_id))
        used += rooms(make_request(CHAT, n=second[1]), place(f"{request_id}-3"))
    assert len(used) == len(set(used))
    assert all(0 <= room < 2**63 for room in used)


def test_rooms_use_all_63_bits() -> None:
    seen = 0
    for number in range(64):
        (room,) = rooms(make_request(CHAT), place(f"id-{number}"))
        seen |= room
    assert seen == 2**63 - 1


_names = st.text(max_size=12).filter(lambda name: name not in TRANSFER_MEMBERS)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)


@given(
    members=st.dictionaries(_names, _json, max_size=6),
    controls=st.sets(st.sampled_from(sorted(TRANSFER_MEMBERS))),
    indent=st.sampled_from([None, 1]),
)
def test_whatever_else_a_client_writes_arrives_as_it_is(
    members: dict[str, Any], controls: set[str], indent: int | None
) -> None:
    members |= {"model": MODEL, "messages": [{"role": "user", "content": "\u00e9 \ud83d\ude00"}]}
    members.pop("n", None)
    for name in ("vllm_xargs", "prompt"):
        members.pop(name, None)
    hostile = {name: {"bootstrap_room": 1} for name in controls}
    data = json.dumps({**hostile, **members}, indent=indent).encode()
    body = split(make_request(CHAT, data))
    before, after = Body(data), Body(body)
    assert {name: after.raw(name) for name in members} == {
        name: before.raw(name) for name in members
    }
    assert set(after.names) - members.keys() == set(MEETING)
    assert after.get("bootstrap_host", str) == "10.0.0.7"


@pytest.mark.parametrize("path", TWO_LEG_BODIES)
@pytest.mark.parametrize("name", sorted(TRANSFER_MEMBERS))
def test_a_client_steers_no_transfer(path: str, name: str) -> None:
    body = json.loads(split(make_request(path, make_body(path, **{name: "mine"}))))
    assert "mine" not in body.values()


def test_every_prompt_that_one_engine_can_take_is_split() -> None:
    assert {"n", "several-prompts", "truncated-prompt", "invalid-value"} <= SPLIT.fits
    assert not SPLIT.fits & {"stateful-responses", "single-pod-path", "best-of", "echo"}
