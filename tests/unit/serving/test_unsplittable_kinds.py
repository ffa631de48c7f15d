"""Which kinds of requests are served whole, and which requests are of a kind."""

from typing import Any

import pytest
from factories import make_request

from pdrouter.openai.kind import RequestKind, describe_kind
from pdrouter.serving.unsplittable import UnsplittableKinds

KIND = RequestKind("/v1/chat/completions", ("tool_choice",))
POOL = {"a", "b", "c"}


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.kinds = UnsplittableKinds(lambda: self.now)

    def fail(self, *uids: str, pool: set[str] = POOL) -> bool:
        return self.kinds.note_failed("m", KIND, uids, pool)

    def is_whole(self) -> bool:
        return self.kinds.is_whole("m", KIND)


def test_a_kind_that_two_pods_have_failed_is_whole_for_a_while() -> None:
    bench = Bench()
    assert not bench.kinds.evidence
    assert bench.fail("a", "b")
    assert bench.is_whole()
    assert set(bench.kinds.list_failed("m", KIND)) == {"a", "b"}
    assert not bench.kinds.is_whole("other", KIND)
    bench.now = 59.9
    assert bench.is_whole()
    bench.now = 60
    assert not bench.is_whole()
    assert not bench.kinds.evidence


def test_one_pod_is_not_enough_unless_there_is_no_other() -> None:
    bench = Bench()
    assert bench.fail("a")
    assert not bench.is_whole()
    assert bench.fail("a")
    assert not bench.is_whole()
    assert bench.fail("b")
    assert bench.is_whole()
    assert Bench().fail("a", pool={"a"})
    alone = Bench()
    alone.fail("a", pool={"a"})
    assert alone.is_whole()


def test_a_kind_that_another_pod_serves_is_not_to_blame() -> None:
    bench = Bench()
    bench.fail("a", "b")
    bench.kinds.note_served("m", KIND)
    assert not bench.is_whole()
    assert not bench.fail("a", "b")
    assert not bench.is_whole()
    bench.now = 60
    assert bench.fail("a", "b")


def test_few_kinds_are_remembered() -> None:
    bench = Bench()
    for number in range(1000):
        bench.kinds.note_failed("m", RequestKind(f"/{number}", ("tools",)), ("a", "b"), POOL)
    assert len(bench.kinds.evidence) == 256


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({}, None),
        ({"temperature": 0, "top_p": 1, "user": "u", "seed": 1, "stream": True}, None),
        ({"tool_choice": "required"}, ("tool_choice",)),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, ("tool_choice",)),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": None}, None),
        ({"tool_choice": {"type": "none"}}, None),
        ({"tool_choice": {"type": "any"}}, ("tool_choice",)),
        ({"tools": []}, None),
        ({"tools": [{}], "tool_choice": "auto"}, ("tools",)),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, ("response_format",)),
        ({"text": {"format": {"type": "text"}}}, None),
        ({"text": {"format": {"type": "json_schema"}}}, ("text",)),
        ({"text": {"format": 5}}, ("text",)),
        ({"structured_outputs": {"regex": "a+"}}, ("structured_outputs",)),
        ({"guided_regex": "a+", "logprobs": True}, ("guided_regex", "logprobs")),
        ({"logprobs": False}, None),
        ({"made_up": True}, None),
    ],
)
def test_the_kind_is_by_what_shapes_the_output(
    members: dict[str, Any], kind: tuple[str, ...] | None
) -> None:
    found = describe_kind(make_request("/v1/chat/completions", **members))
    assert (found and found.members) == kind


def test_sampling_options_count_where_they_are_nested() -> None:
    request = make_request("/inference/v1/generate", sampling_params={"logprobs": 1})
    assert describe_kind(request) == RequestKind("/inference/v1/generate", ("logprobs",))
