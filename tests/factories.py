"""Builders of the values that many tests need, each with sensible defaults."""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.split import Leg, Placement
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.routing.decision import Choice, Decision
from pdrouter.routing.homes import Homes
from pdrouter.routing.state import RoutingState
from pdrouter.serving.leg_outcome import Attempt, LegAnswer
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.steps import StepTimes

MODEL = "llama"

TWO_LEG_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 7},
    "/v1/responses": {"input": "hi", "store": False},
    "/inference/v1/generate": {"token_ids": [1, 2, 3]},
    "/generate": {"text": "hi"},
}
"""For each path whose requests may have two legs, the least body that gets them."""


def make_pod(name: str = "pod-0", role: Role = Role.PREFILL, **changes: Any) -> Pod:
    """A ready pod of the model; its UID follows from its name."""
    return Pod.create(
        **{
            "uid": f"uid-{name}",
            "name": name,
            "ip": "10.0.0.1",
            "port": 8000,
            "model": MODEL,
            "role": role,
            **changes,
        }
    )


def make_model_pods(*pods: Pod) -> ModelPods:
    """The model's pods, sorted by what they are for."""
    return ModelPods.group(MODEL, pods)


def make_body(path: str, **changes: Any) -> bytes:
    """A client's body for the path; `...` as a value leaves the member out."""
    members = {"model": MODEL, **TWO_LEG_BODIES.get(path, {}), **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...}).encode()


def make_request(path: str, data: bytes | None = None, **changes: Any) -> InferenceRequest:
    """A validated request with that body, or with one made by `make_body`."""
    return parse_request(
        ENDPOINTS[path],
        "",
        make_body(path, **changes) if data is None else data,
        transfer_members=TRANSFER_MEMBERS,
        split_multimodal=False,
    )


def make_kv_params(**changes: Any) -> dict[str, Any]:
    """The KV handle of a vLLM prefill engine; `...` as a value leaves the member out."""
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[17, 18, 19]],
        "remote_engine_id": "engine-1",
        "remote_request_id": "cmpl-1",
        "remote_host": "10.0.3.7",
        "remote_port": 5600,
        "tp_size": 8,
        **changes,
    }
    return {name: value for name, value in params.items() if value is not ...}


def make_attempt(
    pod: Pod,
    *,
    status: int | None = 200,
    failure: FailureKind | None = None,
    stale_connections: int = 0,
) -> Attempt:
    """A try of the prefill leg that took a quarter of a second."""
    message = "" if failure is None else f"it was {failure}"
    return Attempt(Leg.PREFILL, pod, "id-1", status, failure, message, 0.25, stale_connections)


PLACEMENT = Placement({Leg.PREFILL: make_pod("p"), Leg.DECODE: make_pod("d", Role.DECODE)}, "id-1")
"""Where legs run, for wires that do not care."""


def make_answers(body: bytes, pod: Pod) -> list[LegAnswer]:
    """What a prefill engine has answered."""
    return [LegAnswer(Leg.PREFILL, pod, "id-1", body, None)]


def make_decision(prefill: Pod | None, decode: Pod, reason: str = "") -> Decision:
    """A decision for these pods."""
    last = Choice(Leg.DECODE, decode, "kv_capacity", 2.0, [decode] * 3, [2.0] * 3, 9)
    if prefill is None:
        return Decision((), last, reason)
    side = Choice(Leg.PREFILL, prefill, "ttft", 0.0, [prefill], [0.0], 7)
    return Decision((side,), last, reason)


def make_record(**changes: Any) -> RequestRecord:
    """The record of a request that nothing has happened to yet, but for the changes."""
    return RequestRecord(**{"request_id": "r-1", **changes})


def make_state(
    ledger: Ledger | None = None,
    *,
    samples: Mapping[str, EngineSample] | None = None,
    prefixes: PrefixIndex | None = None,
    seed: int = 0,
    clock: Callable[[], float] = lambda: 0.0,
    whole: WholeServing | None = None,
    homes: Homes | None = None,
) -> RoutingState:
    """The condition of pods that nothing is known of but what is given, at a time that stands."""
    return RoutingState(
        Ledger(clock=clock) if ledger is None else ledger,
        prefixes or PrefixIndex(1 << 20, 60, clock),
        samples or {},
        clock,
        Random(seed),
        whole=whole or WholeServing(clock=clock),
        decoded=DecodedPrompts(PrefixIndex(1 << 20, 60, clock)),
        homes=homes or Homes(),
    )


def make_steps(**seconds: float) -> StepTimes:
    """Steps that took so long."""
    steps = StepTimes()
    steps.seconds.update(seconds)
    return steps
