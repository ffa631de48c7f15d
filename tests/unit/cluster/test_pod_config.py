"""The annotation `model.aibrix.ai/config`: profiles, and which requests they are for."""

import json
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.kubernetes.objects import KubePod, PodRules
from pdrouter.cluster.pod_config import ConfigInvalid, Hints, PodConfig, parse_config, read_config


def make_config(routing: Any = None, **members: Any) -> PodConfig:
    profile = {"routingStrategy": "pd", "routingConfig": routing}
    return parse_config(json.dumps({"profiles": {"default": profile}, **members}))


def test_everything_that_a_profile_can_say_is_understood() -> None:
    config = parse_config(
        json.dumps(
            {
                "lockedRoutingStrategy": " pd ",
                "defaultProfile": "short",
                "profiles": {
                    "short": {
                        "routingStrategy": "pd",
                        "routingConfig": {
                            "promptLenBucketMinLength": 1,
                            "promptLenBucketMaxLength": 4096,
                            "combined": True,
                            "prefillScorePolicy": " Prefix_Cache ",
                            "decodeScorePolicy": "LOAD_BALANCING",
                            "promptTokensGte": 1,
                            "promptTokensLt": 4097,
                            "maxTokensGte": 10,
                            "maxTokensLt": 20,
                            "somebodyElses": {"x": [1]},
                        },
                        "requestsPerSecond": 7,
                    }
                },
            }
        )
    )
    assert (config.locked_strategy, config.default_profile) == ("pd", "short")
    profile = config.profiles["short"]
    assert (profile.routing_strategy, profile.requests_per_second) == ("pd", 7)
    assert (profile.min_prompt_tokens, profile.max_prompt_tokens) == (1, 4096)
    assert (profile.prefill_policy, profile.decode_policy) == ("prefix_cache", "load_balancing")
    assert profile.combined
    assert profile.hints == Hints(1, 4097, 10, 20)


@pytest.mark.parametrize(
    "profile", [{}, {"routingConfig": {}}, {"routingConfig": None}, {"requestsPerSecond": 0}]
)
def test_a_profile_may_say_nothing(profile: dict[str, Any]) -> None:
    config = parse_config(json.dumps({"profiles": {"default": profile}}))
    found = config.find_profile("")
    assert found is not None
    assert (found.routing_strategy, found.requests_per_second, found.combined) == ("", None, False)
    assert found.holds(0)
    assert found.holds(10**9)


@pytest.mark.parametrize(
    ("low", "high", "held", "refused"),
    [
        (None, None, [0, 1, 10**9], []),
        (10, 20, [10, 15, 20], [9, 21]),
        (-5, 20, [0, 20], [21]),
        (10, 0, [10, 10**9], [9]),
        (10, None, [10, 10**9], [9]),
        (10, 10, [10], [9, 11]),
        (20, 10, [], [9, 10, 15, 20, 21]),
        (0, -1, [], [0, 1]),
    ],
)
def test_a_bucket_holds_both_of_its_ends(
    low: int | None, high: int | None, held: list[int], refused: list[int]
) -> None:
    config = make_config({"promptLenBucketMinLength": low, "promptLenBucketMaxLength": high})
    profile = config.profiles["default"]
    assert [n for n in held + refused if profile.holds(n)] == held


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"profiles": {}}',
        '{"profiles": null}',
        '{"profiles": []}',
        '{"profiles": {"default": 1}}',
        '{"profiles": {"default": {"requestsPerSecond": "10"}}}',
        '{"profiles": {"default": {"routingStrategy": 1}}}',
        '{"profiles": {"default": {}}, "defaultProfile": 1}',
    ],
)
def test_an_annotation_of_another_shape_is_invalid(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_config(text)


def test_an_invalid_annotation_is_ignored_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = '{"profiles": {}, "of": "this test"}'
    with caplog.at_level(logging.WARNING):
        assert read_config(text) is None
        assert read_config(text) is None
    assert [record.getMessage() for record in caplog.records] == [
        "an annotation model.aibrix.ai/config is ignored: there are no profiles"
    ]


def test_the_same_text_is_parsed_once() -> None:
    text = '{"profiles": {"default": {"routingStrategy": "parsed once"}}}'
    assert read_config(text) is read_config(str(text.encode(), "utf-8"))


@pytest.mark.parametrize(
    "routing",
    [
        "text",
        [1],
        {"promptLenBucketMaxLength": "long", "combined": True},
        {"promptLenBucketMaxLength": 1.5, "combined": True},
        {"combined": "yes", "promptLenBucketMaxLength": 5},
    ],
)
def test_a_routing_config_that_cannot_be_used_has_its_defaults(
    routing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        profile = make_config(routing).profiles["default"]
    assert (profile.max_prompt_tokens, profile.combined) == (None, False)
    assert profile.routing_strategy == "pd"
    assert "routingConfig of profile 'default' is ignored" in caplog.text


def test_hints_that_cannot_be_used_leave_the_bucket_alone_and_the_other_way_round() -> None:
    first = make_config({"promptTokensGte": "x", "promptLenBucketMaxLength": 5})
    assert first.profiles["default"].hints == Hints()
    assert first.profiles["default"].max_prompt_tokens == 5
    second = make_config({"promptTokensGte": 3, "promptLenBucketMaxLength": "x"})
    assert second.profiles["default"].hints == Hints(3)
    assert second.profiles["default"].max_prompt_tokens is None


@pytest.mark.parametrize(
    ("names", "default", "asked", "found"),
    [
        (["default", "a"], None, "a", "a"),
        (["default", "a"], None, "", "default"),
        (["default", "a"], None, "unknown", "default"),
        (["default", "a"], "a", "unknown", "a"),
        (["default", "a"], "a", "default", "default"),
        (["a"], None, "unknown", None),
        (["a"], "gone", "", None),
        (["Default"], None, "", None),
    ],
)
def test_an_unknown_profile_is_the_default_one(
    names: list[str], default: str | None, asked: str, found: str | None
) -> None:
    profiles = {name: {"routingStrategy": name} for name in names}
    config = parse_config(json.dumps({"profiles": profiles, "defaultProfile": default}))
    profile = config.find_profile(asked)
    assert (profile.routing_strategy if profile else None) == found


def choose(profiles: dict[str, dict[str, int]], prompt: int, limit: int | None) -> str:
    members = {name: {"routingConfig": hints} for name, hints in profiles.items()}
    return parse_config(json.dumps({"profiles": members})).choose_profile(prompt, limit)


@pytest.mark.parametrize(
    ("profiles", "prompt", "limit", "chosen"),
    [
        ({"a": {}}, 5, 5, "default"),
        ({"a": {"promptTokensGte": 5}}, 4, None, "default"),
        ({"a": {"promptTokensGte": 5}}, 5, None, "a"),
        ({"a": {"promptTokensLt": 5}}, 4, None, "a"),
        ({"a": {"promptTokensLt": 5}}, 5, None, "default"),
        ({"a": {"maxTokensGte": 5}}, 0, 4, "default"),
        ({"a": {"maxTokensGte": 5}}, 0, 5, "a"),
        ({"a": {"maxTokensGte": 5}}, 0, None, "default"),
        ({"a": {"maxTokensLt": 5}}, 0, 4, "a"),
        ({"a": {"maxTokensLt": 5}}, 0, 5, "default"),
        ({"a": {"maxTokensLt": 5}}, 0, None, "default"),
        ({"a": {"promptTokensGte": 1, "maxTokensLt": 5}}, 1, 5, "default"),
        # More hints win, then the narrower ones, then the name.
        ({"a": {"promptTokensGte": 9}, "b": {"promptTokensGte": 1, "maxTokensGte": 1}}, 9, 1, "b"),
        ({"a": {"promptTokensGte": 1}, "b": {"promptTokensGte": 2}}, 9, 1, "b"),
        ({"a": {"promptTokensLt": 20}, "b": {"promptTokensLt": 10}}, 9, 1, "b"),
        ({"a": {"promptTokensLt": 10}, "b": {"promptTokensGte": 1}}, 9, 1, "b"),
        ({"a": {"maxTokensGte": 1}, "b": {"maxTokensGte": 2}}, 9, 5, "b"),
        ({"a": {"maxTokensLt": 20}, "b": {"maxTokensLt": 10}}, 9, 5, "b"),
        ({"a": {"maxTokensGte": 3}, "b": {"promptTokensLt": 10}}, 9, 5, "b"),
        ({"b": {"maxTokensLt": 10}, "a": {"maxTokensLt": 10}}, 9, 5, "a"),
    ],
)
def test_the_profile_whose_hints_fit_best_is_chosen(
    profiles: dict[str, dict[str, int]], prompt: int, limit: int | None, chosen: str
) -> None:
    assert choose(profiles, prompt, limit) == chosen


_HINTS = st.dictionaries(
    st.sampled_from(["promptTokensGte", "promptTokensLt", "maxTokensGte", "maxTokensLt"]),
    st.integers(0, 10),
)


@given(
    st.dictionaries(st.sampled_from("abcd"), _HINTS, min_size=1),
    st.integers(0, 10),
    st.none() | st.integers(1, 10),
)
def test_the_choice_fits_and_none_with_more_hints_does(
    profiles: dict[str, dict[str, int]], prompt: int, limit: int | None
) -> None:
    def fits(hints: dict[str, int]) -> bool:
        checks: dict[str, Callable[[int], bool]] = {
            "promptTokensGte": lambda bound: prompt >= bound,
            "promptTokensLt": lambda bound: prompt < bound,
            "maxTokensGte": lambda bound: limit is not None and limit >= bound,
            "maxTokensLt": lambda bound: limit is not None and limit < bound,
        }
        return bool(hints) and all(checks[name](bound) for name, bound in hints.items())

    chosen = choose(profiles, prompt, limit)
    fitting = {name: hints for name, hints in profiles.items() if fits(hints)}
    if not fitting:
        assert chosen == "default"
    else:
        assert len(fitting[chosen]) == max(len(hints) for hints in fitting.values())


# --- On pods ---


def read_pod(annotations: dict[str, str]) -> Any:
    labels = {"model.aibrix.ai/name": "m", "tier": "gold"}
    metadata = {"name": "p", "uid": "u", "labels": labels, "annotations": annotations}
    pod = msgspec.json.decode(msgspec.json.encode({"metadata": metadata}), type=KubePod)
    return PodRules({"vllm": ()}).read(pod)


def test_a_pod_has_its_labels_and_its_configuration() -> None:
    text = '{"profiles": {"default": {}}}'
    pod = read_pod({"model.aibrix.ai/config": text})
    assert pod.labels == {"model.aibrix.ai/name": "m", "tier": "gold"}
    assert pod.config is read_config(text)
    assert {pod: "is hashable"}[pod]


@pytest.mark.parametrize("annotations", [{}, {"model.aibrix.ai/config": ""}])
def test_a_pod_without_the_annotation_has_no_configuration(annotations: dict[str, str]) -> None:
    assert read_pod(annotations).config is None


@pytest.mark.parametrize(
    "text",
    [
        '{"profiles": ' + "[" * 100_000,
        '{"profiles": {"default": {"routingConfig": ' + "[" * 100_000 + "]" * 100_000 + "}}}",
        '{"profiles": {"a\r\\nx-evil: y": {}}}',
        '{"profiles": {"": {}}}',
        '{"profiles": {"default": {"requestsPerSecond": ' + "9" * 400 + "}}}",
    ],
)
def test_hostile_annotations_are_invalid(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_config(text)
