"""Values for JSON schemas, and what a request wants of its answer; jsonschema is the judge."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.tools.simulation.output_plans import FREE, plan_output
from pdrouter.tools.simulation.refusal import Refused
from pdrouter.tools.simulation.schema_values import make_value

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 20, "maxLength": 22},
        "age": {"type": "integer", "minimum": 18, "exclusiveMaximum": 19},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
        "email": {"type": ["string", "null"], "format": "email"},
    },
    "required": ["name", "age", "tags", "email"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number", "exclusiveMinimum": 0},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "next", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: list[Any] = [
    *(True, {}, {"const": None}, {"enum": [3, 4]}, {"type": "null"}, {"type": "boolean"}),
    *({"type": "string", "maxLength": 2}, {"type": "string", "format": "date-time"}),
    *({"type": "number"}, {"type": "number", "maximum": -7}, {"type": "number", "minimum": 1e9}),
    *({"type": "integer", "minimum": -3, "maximum": -3}, {"type": "integer", "maximum": -9}),
    {"type": "integer", "multipleOf": 7, "exclusiveMinimum": 7},
    {"type": "number", "multipleOf": 0.5, "exclusiveMaximum": 0},
    {"type": "number", "minimum": 0.25, "exclusiveMaximum": 0.5},
    *({"type": "array"}, {"type": "array", "maxItems": 0}, {"items": {"type": "integer"}}),
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "minItems": 3},
    *({"type": "object"}, {"required": ["x"], "properties": {"y": {"type": "boolean"}}}),
    *(
        PERSON,
        TREE,
        {"oneOf": [PERSON, {"type": "null"}]},
        {"type": "array", "items": TREE["$defs"]},
    ),
    {"allOf": [PERSON, {"required": ["name"]}]},
    {"$defs": {"a/b": {}}, "properties": {"p": PERSON}, "type": "object", "required": ["p"]},
    {"properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "string"}], "title": "A"}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_value_satisfies_its_schema(schema: Any) -> None:
    value = make_value(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(value)))


_BOUNDS = st.integers(-20, 20) | st.integers(-80, 80).map(lambda quarters: quarters / 4)


@given(
    st.sampled_from(["integer", "number"]),
    st.fixed_dictionaries(
        {}, optional={"minimum": _BOUNDS, "exclusiveMinimum": _BOUNDS, "multipleOf": st.just(3)}
    ),
)
def test_numbers_keep_within_their_bounds(kind: str, bounds: dict[str, Any]) -> None:
    schema = {"type": kind, **bounds}
    jsonschema.Draft202012Validator(schema).validate(make_value(schema))


@pytest.mark.parametrize(
    "schema",
    [
        *(False, None, 3, [], {"$ref": "#/$defs/absent"}, {"properties": 3}, {"anyOf": 3}),
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "minItems": "many"},
    ],
    ids=json.dumps,
)
def test_a_schema_that_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(Refused) as refused:
        make_value(schema)
    assert refused.value.status == 400


WEATHER = {"name": "get_weather", "parameters": PERSON}
CLOCK = {"name": "get_time"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK}]
NAMED = {"type": "function", "function": {"name": "get_time"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "22 degrees"}
ASKED = {"messages": [{"role": "user", "content": "How warm is it?"}]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


@pytest.mark.parametrize(
    ("members", "tool"),
    [
        ({"tools": TOOLS}, "get_weather"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "get_weather"),
        ({"tools": TOOLS, "tool_choice": "required"}, "get_weather"),
        ({"tools": TOOLS, "tool_choice": NAMED}, "get_time"),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS, "messages": [*ASKED["messages"], RESULT]}, None),
        ({"tools": TOOLS, "tool_choice": "required", "messages": [RESULT]}, "get_weather"),
        ({"tools": None, "tool_choice": "auto"}, None),
        ({}, None),
        # The Responses API.
        ({"tools": [{"type": "function", **WEATHER}], "input": "x"}, "get_weather"),
        (
            {
                "tools": [{"type": "function", **WEATHER}],
                "tool_choice": {"type": "function", "name": "get_weather"},
            },
            "get_weather",
        ),
        (
            {
                "tools": [{"type": "function", **WEATHER}],
                "messages": None,
                "input": [{"type": "function_call_output"}],
            },
            None,
        ),
        ({"tools": [{"type": "web_search"}, {"type": "function", **WEATHER}]}, "get_weather"),
        ({"tools": [{"type": "web_search"}]}, None),
        # Anthropic's.
        ({"tools": [{"name": "a", "input_schema": PERSON}], "tool_choice": {"type": "any"}}, "a"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "tool", "name": "a"}}, "a"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "none"}}, None),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "auto"}}, "a"),
        ({"tools": [{"name": "a"}], "messages": [{"content": [{"type": "tool_result"}]}]}, None),
    ],
)
def test_the_tool_is_called_that_the_request_wants(
    members: dict[str, Any], tool: str | None
) -> None:
    plan = plan_output(ASKED | members)
    assert plan.tool == tool
    if tool == "get_weather":
        jsonschema.validate(json.loads("".join(plan.tokens)), PERSON)
    elif tool is None:
        assert plan == FREE


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [TOOLS[0]], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": ["x"]}, "tools"),
        ({"tools": [{}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": "x"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"guided_json": "{"}, "structured_outputs"),
    ],
)
def test_a_tool_that_is_not_there_is_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        plan_output(ASKED | members)
    assert refused.value.param == param


@pytest.mark.parametrize(
    "members",
    [
        {"response_format": FORMAT},
        {"text": {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}},
        {"output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
        {"response_format": FORMAT, "tools": TOOLS, "tool_choice": "none"},
        {"structured_outputs": {"json": PERSON}},
        {"structured_outputs": {"json": json.dumps(PERSON)}},
        {"guided_json": PERSON},
    ],
)
def test_the_text_is_json_of_the_schema_that_the_request_wants(members: dict[str, Any]) -> None:
    plan = plan_output(ASKED | members)
    assert plan.tool is None
    jsonschema.validate(json.loads("".join(plan.tokens)), PERSON)


@pytest.mark.parametrize(
    "members",
    [{"structured_outputs": {"choice": ["yes, of course", "no"]}}, {"guided_choice": ["yes"]}],
)
def test_the_text_is_one_of_the_choices(members: dict[str, Any]) -> None:
    assert "".join(plan_output(ASKED | members).tokens).startswith("yes")


def test_a_json_object_says_that_it_is_made_up() -> None:
    plan = plan_output(ASKED | {"response_format": {"type": "json_object"}})
    assert json.loads("".join(plan.tokens)) == {"made_up": True}


@pytest.mark.parametrize("wanted", [None, {"type": "text"}, {}])
def test_any_text_will_do_otherwise(wanted: Any) -> None:
    assert plan_output(ASKED | {"response_format": wanted}) == FREE
