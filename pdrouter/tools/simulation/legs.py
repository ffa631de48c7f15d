"""The contract of the two legs: what a router must send to a prefill and to a decode engine."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pdrouter.tools.simulation.api_requests import LIMITS, Api, sampling_members
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.refusal import ContractViolated, malformed

Handle = Mapping[str, Any]
"""What a prefill engine hands out and a decode engine must get back unchanged."""


class SimulatedLeg(StrEnum):
    """The half of a request that an engine is asked for."""

    ENCODE = "encode"
    PREFILL = "prefill"
    DECODE = "decode"
    WHOLE = "whole"


_CONTEXT_LEGS = {"context_only": SimulatedLeg.PREFILL, "generation_only": SimulatedLeg.DECODE}
_BY_PARAMS = ("nixl", "nixl-push", "mooncake")
_NULL_BEFORE_PREFILL = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
_NEEDED_FOR_FETCH = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


def leg_of(members: Members, config: EngineConfig) -> SimulatedLeg:
    """Say which leg a body asks an engine for."""
    if config.role == "encode":
        return SimulatedLeg.ENCODE
    if config.kv_connector == "neuron-legacy":
        if config.role == "prefill":
            return SimulatedLeg.PREFILL
        has_answer = members.get("disagg_prefill_resp") is not None
        return SimulatedLeg.DECODE if has_answer else SimulatedLeg.WHOLE
    if config.kv_connector == "bootstrap":
        return SimulatedLeg(config.role)
    if config.kv_connector == "trtllm":
        request_type = str(disaggregated_params(members).get("request_type"))
        return _CONTEXT_LEGS.get(request_type, SimulatedLeg.WHOLE)
    return _leg_of_params(members.get("kv_transfer_params"), config)


def _leg_of_params(params: object, config: EngineConfig) -> SimulatedLeg:
    if not isinstance(params, dict):
        return SimulatedLeg.WHOLE
    if config.kv_connector == "offloading":
        names = ("remote_decoder", "remote_prefiller")
    elif config.kv_connector in _BY_PARAMS:
        names = ("do_remote_decode", "do_remote_prefill")
    else:
        return SimulatedLeg.WHOLE
    for name, leg in zip(names, (SimulatedLeg.PREFILL, SimulatedLeg.DECODE), strict=True):
        if params.get(name) not in (None, False):
            return leg
    return SimulatedLeg.WHOLE


def disaggregated_params(members: Members) -> Mapping[str, Any]:
    """Return what TensorRT-LLM's legs are told; empty if a body says nothing."""
    params = members.get("disaggregated_params")
    return params if isinstance(params, dict) else {}


def check_prefill_leg(api: Api, members: Members, config: EngineConfig) -> None:
    """Hold a prefill leg to its contract: one token, one choice, no stream, an empty handle.

    Raises:
        ContractViolated: With status 400, naming the member at fault.
    """
    if members.get("stream"):
        raise _violated("prefill_stream", "stream must be false on the prefill leg", "stream")
    if members.get("stream_options") is not None:
        raise _violated(
            "prefill_stream_options",
            "Stream options can only be defined when `stream=True`.",
            "stream_options",
        )
    sampling = sampling_members(api, members)
    limits = {
        name: sampling[name] for name in LIMITS[api] if sampling.get(name) is not None
    } or dict.fromkeys(LIMITS[api][-1:])
    for name, limit in limits.items():
        if type(limit) is not int or limit != 1:
            message = f"{name} must be 1 on the prefill leg, got {limit}"
            raise _violated("prefill_limit", message, name)
    min_tokens = sampling.get("min_tokens")
    if min_tokens not in (None, 0, 1):
        message = f"min_tokens must be less than or equal to max_tokens=1, got {min_tokens}."
        raise _violated("prefill_min_tokens", message, "min_tokens")
    if sampling.get("n") not in (None, 1):
        raise _violated("prefill_n", "n must be 1 on the prefill leg", "n")
    if config.kv_connector in _BY_PARAMS:
        _check_empty_handle(members["kv_transfer_params"], config)
    elif config.kv_connector != "offloading" and members.get("kv_transfer_params") is not None:
        message = "this connector has no kv_transfer_params"
        raise _violated("prefill_transfer_params", message, "kv_transfer_params")


def _check_empty_handle(params: Handle, config: EngineConfig) -> None:
    # Only old pull schedulers look them up; elsewhere they may be absent, but say nothing.
    looks_up = config.kv_connector == "nixl" and config.release == "old"
    absent = "absent" if looks_up else None
    wrong = [name for name in _NULL_BEFORE_PREFILL if params.get(name, absent) is not None]
    if params["do_remote_decode"] is not True:
        wrong.append("do_remote_decode")
    if params.get("do_remote_prefill") is not False:
        wrong.append("do_remote_prefill")
    if wrong:
        raise _violated(
            "prefill_transfer_params",
            "the prefill leg needs do_remote_decode true, do_remote_prefill false and all remote "
            f"members present and null; wrong: {', '.join(wrong)}",
            "kv_transfer_params",
        )


def check_decode_leg(members: Members, config: EngineConfig) -> Handle:
    """Hold a decode leg to its contract, and give the handle it brings.

    A real engine hangs, or loses its engine core, where this refuses.

    Raises:
        ContractViolated: With status 500 and the reason.
    """
    if config.kv_connector == "neuron-legacy":
        answer = members["disagg_prefill_resp"]
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), str):
            raise _fatal("decode_missing_keys", "disagg_prefill_resp is not a prefill answer")
        return answer
    params: Handle = members["kv_transfer_params"]
    if params["do_remote_prefill"] is not True or params.get("do_remote_decode"):
        raise _fatal("decode_flags", "kv_transfer_params must ask for a remote prefill only")
    blocks = params.get("remote_block_ids")
    if not isinstance(blocks, list) or all(group == [] for group in blocks):
        raise _fatal(
            "decode_empty_blocks",
            "assert num_external_tokens == 0: a remote prefill without remote_block_ids kills "
            "the engine core",
        )
    missing = [name for name in _NEEDED_FOR_FETCH if params.get(name) is None]
    if config.release == "old" and "remote_request_id" in missing:
        missing.remove("remote_request_id")
    if missing:
        raise _fatal(
            "decode_missing_keys",
            f"Got invalid KVTransferParams without {', '.join(missing)}: the request would hang",
        )
    # What reads the prompt takes them out.
    return {name: value for name, value in params.items() if name != "prompt_token_ids"}


def check_prompt_count(leg: SimulatedLeg, prompts: int) -> None:
    """Refuse several prompts in a disaggregated request: they would share one set of blocks.

    Raises:
        ContractViolated: With status 400 on the prefill leg and 500 on the decode leg.
    """
    if prompts == 1:
        return
    if leg is SimulatedLeg.PREFILL:
        message = "only the first prompt would get blocks on the prefill leg"
        raise _violated("prefill_several_prompts", message, "prompt")
    if leg is SimulatedLeg.DECODE:
        raise _fatal("decode_several_prompts", "block marked busy by another prompt")


def check_transfer_members(members: Members) -> None:
    """Refuse transfer members that are not objects, as vLLM's request model does.

    Raises:
        Refused: `kv_transfer_params` is neither null nor an object.
    """
    params = members.get("kv_transfer_params")
    if params is not None and not isinstance(params, dict):
        raise malformed("Input should be a valid dictionary", "kv_transfer_params")


def _violated(reason: str, message: str, param: str) -> ContractViolated:
    return ContractViolated(reason, 400, message, param=param)


def _fatal(reason: str, message: str) -> ContractViolated:
    return ContractViolated(reason, 500, f"EngineCore contract violated: {message}")
