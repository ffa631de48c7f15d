"""The contract of the prefill and the decode leg."""

from dataclasses import replace
from typing import Any

import pytest

from pdrouter.tools.simulation.api_requests import Api
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.legs import (
    SimulatedLeg,
    check_decode_leg,
    check_prefill_leg,
    check_prompt_count,
    check_transfer_members,
    leg_of,
)
from pdrouter.tools.simulation.refusal import ContractViolated, Refused

NIXL = EngineConfig()
OLD = EngineConfig(release="old")
NONE = EngineConfig(kv_connector="none")
NEURON_PREFILL = EngineConfig(kv_connector="neuron-legacy", role="prefill")
NEURON_DECODE = EngineConfig(kv_connector="neuron-legacy", role="decode")

EMPTY_HANDLE: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
HANDLE: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[0]],
    "remote_engine_id": "engine",
    "remote_request_id": "request",
    "remote_host": "10.0.0.1",
    "remote_port": 5600,
}
PREFILL: dict[str, Any] = {"kv_transfer_params": EMPTY_HANDLE, "stream": False, "max_tokens": 1}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in EMPTY_HANDLE.items() if key != name}


@pytest.mark.parametrize(
    ("config", "members", "leg"),
    [
        (NIXL, {}, SimulatedLeg.WHOLE),
        (NIXL, {"kv_transfer_params": None}, SimulatedLeg.WHOLE),
        (NIXL, {"kv_transfer_params": {}}, SimulatedLeg.WHOLE),
        (NIXL, {"kv_transfer_params": EMPTY_HANDLE}, SimulatedLeg.PREFILL),
        (NIXL, {"kv_transfer_params": HANDLE}, SimulatedLeg.DECODE),
        (NONE, {"kv_transfer_params": EMPTY_HANDLE}, SimulatedLeg.WHOLE),
        (NONE, {"kv_transfer_params": HANDLE}, SimulatedLeg.WHOLE),
        (NEURON_PREFILL, {}, SimulatedLeg.PREFILL),
        (NEURON_DECODE, {}, SimulatedLeg.WHOLE),
        (NEURON_DECODE, {"disagg_prefill_resp": {"id": "x"}}, SimulatedLeg.DECODE),
    ],
)
def test_the_body_says_which_leg_is_asked_for(
    config: EngineConfig, members: dict[str, Any], leg: SimulatedLeg
) -> None:
    assert leg_of(members, config) is leg


@pytest.mark.parametrize(
    ("api", "members"),
    [
        (Api.CHAT, PREFILL),
        (Api.CHAT, PREFILL | {"max_completion_tokens": 1, "min_tokens": 1, "n": 1}),
        (Api.CHAT, PREFILL | {"max_tokens": None, "max_completion_tokens": 1, "n": None}),
        (Api.CHAT, PREFILL | {"stream": None, "stream_options": None, "min_tokens": 0}),
        (Api.COMPLETIONS, PREFILL),
        (Api.MESSAGES, PREFILL),
        (Api.RESPONSES, {"kv_transfer_params": EMPTY_HANDLE, "max_output_tokens": 1}),
        (
            Api.GENERATE,
            {"kv_transfer_params": EMPTY_HANDLE, "sampling_params": {"max_tokens": 1}},
        ),
    ],
)
def test_a_proper_prefill_leg_is_accepted(api: Api, members: dict[str, Any]) -> None:
    check_prefill_leg(api, members, NIXL)


@pytest.mark.parametrize(
    ("api", "members", "reason", "param"),
    [
        (Api.CHAT, PREFILL | {"stream": True}, "prefill_stream", "stream"),
        (Api.CHAT, PREFILL | {"stream_options": {}}, "prefill_stream_options", "stream_options"),
        (Api.CHAT, PREFILL | {"max_tokens": 2}, "prefill_limit", "max_tokens"),
        (Api.CHAT, PREFILL | {"max_tokens": True}, "prefill_limit", "max_tokens"),
        (Api.CHAT, PREFILL | {"max_tokens": 1.0}, "prefill_limit", "max_tokens"),
        (Api.CHAT, PREFILL | {"max_tokens": None}, "prefill_limit", "max_tokens"),
        (
            Api.CHAT,
            PREFILL | {"max_completion_tokens": 9},
            "prefill_limit",
            "max_completion_tokens",
        ),
        (Api.RESPONSES, PREFILL, "prefill_limit", "max_output_tokens"),
        (Api.GENERATE, PREFILL | {"sampling_params": {}}, "prefill_limit", "max_tokens"),
        (Api.CHAT, PREFILL | {"min_tokens": 2}, "prefill_min_tokens", "min_tokens"),
        (Api.CHAT, PREFILL | {"n": 2}, "prefill_n", "n"),
        (
            Api.GENERATE,
            PREFILL | {"sampling_params": {"max_tokens": 1, "n": 2}},
            "prefill_n",
            "n",
        ),
        *(
            (
                Api.CHAT,
                PREFILL | {"kv_transfer_params": EMPTY_HANDLE | {name: "x"}},
                "prefill_transfer_params",
                "kv_transfer_params",
            )
            for name in EMPTY_HANDLE
        ),
        (
            Api.CHAT,
            PREFILL | {"kv_transfer_params": without("do_remote_prefill")},
            "prefill_transfer_params",
            "kv_transfer_params",
        ),
    ],
)
def test_a_prefill_leg_that_breaks_the_contract_is_named(
    api: Api, members: dict[str, Any], reason: str, param: str
) -> None:
    with pytest.raises(ContractViolated) as violated:
        check_prefill_leg(api, members, NIXL)
    assert (violated.value.reason, violated.value.status) == (reason, 400)
    assert violated.value.param == param


@pytest.mark.parametrize(
    "name", sorted(EMPTY_HANDLE.keys() - {"do_remote_decode", "do_remote_prefill"})
)
def test_only_old_engines_look_up_what_is_null(name: str) -> None:
    members = PREFILL | {"kv_transfer_params": without(name)}
    check_prefill_leg(Api.CHAT, members, NIXL)
    with pytest.raises(ContractViolated) as violated:
        check_prefill_leg(Api.CHAT, members, replace(NIXL, release="old"))
    assert violated.value.reason == "prefill_transfer_params"


def test_the_legacy_connector_wants_a_limit_and_no_transfer_params() -> None:
    check_prefill_leg(Api.CHAT, {"max_tokens": 1}, NEURON_PREFILL)
    with pytest.raises(ContractViolated) as violated:
        check_prefill_leg(Api.CHAT, PREFILL, NEURON_PREFILL)
    assert violated.value.reason == "prefill_transfer_params"
    with pytest.raises(ContractViolated):
        check_prefill_leg(Api.CHAT, {"max_tokens": 2}, NEURON_PREFILL)


def test_a_complete_handle_is_accepted_and_given_back() -> None:
    assert check_decode_leg({"kv_transfer_params": HANDLE}, NIXL) == HANDLE
    assert check_decode_leg({"disagg_prefill_resp": {"id": "x"}}, NEURON_DECODE) == {"id": "x"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"remote_block_ids": None}, "decode_empty_blocks"),
        ({"remote_block_ids": []}, "decode_empty_blocks"),
        ({"remote_block_ids": [[]]}, "decode_empty_blocks"),
        ({"remote_engine_id": None}, "decode_missing_keys"),
        ({"remote_request_id": None}, "decode_missing_keys"),
        ({"remote_host": None}, "decode_missing_keys"),
        ({"remote_port": None}, "decode_missing_keys"),
        ({"do_remote_prefill": 1}, "decode_flags"),
        ({"do_remote_decode": True}, "decode_flags"),
    ],
)
def test_a_handle_that_would_hang_or_kill_an_engine_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ContractViolated, match="EngineCore contract violated") as violated:
        check_decode_leg({"kv_transfer_params": HANDLE | change}, NIXL)
    assert (violated.value.reason, violated.value.status) == (reason, 500)


def test_old_engines_need_no_remote_request_id() -> None:
    handle = {name: value for name, value in HANDLE.items() if name != "remote_request_id"}
    assert check_decode_leg({"kv_transfer_params": handle}, OLD) == handle


@pytest.mark.parametrize("answer", [3, {}, {"id": 4}])
def test_a_legacy_handle_must_be_an_answer(answer: object) -> None:
    with pytest.raises(ContractViolated):
        check_decode_leg({"disagg_prefill_resp": answer}, NEURON_DECODE)


@pytest.mark.parametrize(
    ("leg", "status"), [(SimulatedLeg.PREFILL, 400), (SimulatedLeg.DECODE, 500)]
)
def test_several_prompts_do_not_fit_two_legs(leg: SimulatedLeg, status: int) -> None:
    check_prompt_count(leg, 1)
    with pytest.raises(ContractViolated) as violated:
        check_prompt_count(leg, 2)
    assert violated.value.status == status


def test_several_prompts_fit_a_whole_request() -> None:
    check_prompt_count(SimulatedLeg.WHOLE, 2)


def test_transfer_params_must_be_an_object() -> None:
    check_transfer_members({"kv_transfer_params": None})
    with pytest.raises(Refused):
        check_transfer_members({"kv_transfer_params": "x"})
