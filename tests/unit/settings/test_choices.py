"""The names that settings know, and the rooms that give them their meaning, are held together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pdrouter.engines.registry import Splits
from pdrouter.load.failures import EjectionRules
from pdrouter.openai.headers import (
    CONTROL_HEADERS,
    FORWARDED_TO_SIDE_LEGS,
    REQUEST_ID,
    STRIPPED_HEADERS,
)
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.settings import Settings
from pdrouter.settings.choices import (
    CONNECTOR_NAMES,
    DECODE_POLICY_NAMES,
    NEVER_FORWARDED,
    NIXL_MEANINGS,
    PREFILL_POLICY_NAMES,
    STRATEGY_NAMES,
)
from pdrouter.wiring.rules import (
    choose_dispatch_policy,
    choose_ejection_rules,
    choose_policy_options,
)


def test_policies_and_strategies_are_those_that_settings_name() -> None:
    assert tuple(PREFILL_POLICIES) == PREFILL_POLICY_NAMES
    assert tuple(DECODE_POLICIES) == DECODE_POLICY_NAMES
    assert tuple(create_strategies()) == STRATEGY_NAMES


@pytest.mark.parametrize("meaning", NIXL_MEANINGS)
def test_each_connector_that_settings_name_is_spoken(meaning: str) -> None:
    for name in CONNECTOR_NAMES:
        assert Splits(default=name, nixl_means=meaning).find("vllm", None)


def test_no_header_that_steers_a_request_may_be_forwarded() -> None:
    assert {*STRIPPED_HEADERS, *CONTROL_HEADERS, REQUEST_ID} <= NEVER_FORWARDED
    assert not NEVER_FORWARDED & set(FORWARDED_TO_SIDE_LEGS)


@pytest.mark.parametrize(
    ("choose", "rules"),
    [(choose_ejection_rules, EjectionRules()), (choose_policy_options, PolicyOptions())],
)
def test_the_defaults_of_settings_are_those_of_their_room(
    choose: Callable[[Settings], Any], rules: Any
) -> None:
    assert choose(Settings()) == rules


def test_what_is_set_reaches_the_rules_of_its_room() -> None:
    settings = Settings(
        eject_after=5,
        eject_s=60.0,
        eject_longest_s=10.0,
        eject_share=0.25,
        eject_asks=False,
        weight_running=2.0,
    )
    # The shortest time is not cut by a longest that is shorter.
    assert choose_ejection_rules(settings) == EjectionRules(5, 60.0, 60.0, 0.25, asks=False)
    assert choose_policy_options(settings) == PolicyOptions(weight_running=2.0)
    policy = choose_dispatch_policy(
        Settings(routing_algorithm="pd", forward_headers=("x-a",), split_multimodal=True)
    )
    assert (policy.default_strategy, policy.forward_headers) == ("pd", ("x-a",))
    assert policy.split_multimodal
    assert policy.max_forwarded_bytes < Settings().max_message_bytes


def test_each_option_of_the_policies_has_its_setting() -> None:
    settings = {each.name for each in dataclasses.fields(Settings)}
    # What is set of sessions is not for policies alone.
    options = {each.name for each in dataclasses.fields(PolicyOptions)} - {"affinity"}
    assert options <= settings
