"""Annotations of ModelClaims, and what the pods of a warm pool mean by them."""

import json
from typing import Any

import msgspec
import pytest
from factories import make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.kubernetes.claims import PREFIX, ModelClaim, read_claims
from pdrouter.cluster.kubernetes.objects import KubePod, PodRules
from pdrouter.cluster.pods import Inactive, Pod, Role
from pdrouter.cluster.view import ModelPods

RULES = PodRules({"vllm": ("nixl",)}, model_claims=True)


def read(**texts: str) -> list[ModelClaim]:
    return list(read_claims({f"{PREFIX}{name}": text for name, text in texts.items()}))


def say(model: str = "m", port: int = 0, **members: Any) -> str:
    return json.dumps({"model": model, "port": port, **members})


@pytest.mark.parametrize(
    ("text", "port", "inactive"),
    [
        (say(port=8001, state="active"), 8001, None),
        (say(port=8001), 8001, None),
        (say(), 0, Inactive.ACTIVATING),
        (say(state="sleeping"), 0, Inactive.SLEEPING),
        (say(state="failed", reason="x"), 0, Inactive.FAILED),
    ],
)
def test_an_engine_runs_where_it_has_a_port(
    text: str, port: int, inactive: Inactive | None
) -> None:
    assert read(c=text) == [ModelClaim("c", "m", port, inactive)]


@pytest.mark.parametrize(
    "text",
    [
        say("", 8001),
        say("m" * 513, 8001),
        say(port=8001, reason="x" * 9000),
        say(state="active"),
        say(port=8001, state="sleeping"),
        say(port=65536),
        say(port=-1),
        say(state="dreaming"),
        "{}",
        "[]",
        "{",
        "",
    ],
)
def test_what_makes_no_sense_is_left_out(text: str) -> None:
    assert read(a=text, b=say("n", 1)) == [ModelClaim("b", "n", 1, None)]


@given(st.text(max_size=60))
def test_any_text_is_read_or_left_out(text: str) -> None:
    assert len(read(c=text)) <= 1


def read_pod(
    annotations: dict[str, str], labels: dict[str, str] | None = None, *, ready: bool = True
) -> tuple[Pod, ...]:
    status = "True" if ready else "False"
    raw: dict[str, Any] = {
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": labels or {}},
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": status}]},
    }
    raw["metadata"]["annotations"] = annotations
    return RULES.read_ranks(msgspec.json.decode(msgspec.json.encode(raw), type=KubePod))


def test_each_claim_is_a_pod_of_its_model() -> None:
    claims = {f"{PREFIX}a": say("m", 8001), f"{PREFIX}b": say("n", state="sleeping")}
    running, asleep = read_pod(claims)

    assert (running.model, running.address, running.ready) == ("m", "10.0.0.1:8001", True)
    assert (running.metrics_port, running.role, running.own_name) == (8001, Role.BOTH, "p")
    assert (asleep.model, asleep.ready, asleep.inactive) == ("n", False, Inactive.SLEEPING)
    assert running.uid != asleep.uid
    own, *_ = read_pod(claims, {"model.aibrix.ai/name": "own"})
    assert (own.model, own.uid) == ("own", "u")
    assert not read_pod(claims, ready=False)[0].ready
    assert read_pod({}) == ()


def test_without_the_setting_they_are_not_read() -> None:
    pod = msgspec.convert(
        {"metadata": {"name": "p", "annotations": {f"{PREFIX}a": say("m", 8001)}}}, KubePod
    )
    assert PodRules({"vllm": ()}).read_ranks(pod) == ()


def make_dormant(name: str, state: str) -> Pod:
    claim = ModelClaim("c", "m", 0, Inactive(state))
    return claim.place(make_pod(name, Role.BOTH))


def test_the_engine_that_is_nearest_to_serving_tells_how_far_it_is() -> None:
    pods = [make_dormant(name, name) for name in ("failed", "sleeping", "activating")]
    assert ModelPods.group("m", pods).dormant is pods[2]
    assert ModelPods.group("m", pods[:2]).dormant is pods[1]
    assert ModelPods.group("m", [*pods, make_pod("ready", Role.BOTH)]).dormant is None
    assert ModelPods.group("m", [make_pod("away", Role.BOTH, ready=False)]).dormant is None
