"""What a request wants the answer to be: any text, JSON of some schema, or the call of a tool."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.refusal import Refused, malformed
from pdrouter.tools.simulation.schema_values import make_value

_TOKEN = re.compile(r".{1,4}", re.DOTALL)
_ANY_OBJECT = {"type": "object", "properties": {"made_up": {"type": "boolean"}}}


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What the model is to write.

    Attributes:
        tokens: The pieces of the text; none for any text.
        tool: The tool whose arguments the text is.
    """

    tokens: tuple[str, ...] = ()
    tool: str | None = None


FREE = OutputPlan()


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    parameters: object


def plan_output(members: Members) -> OutputPlan:
    """Say what a request of any API wants.

    A tool that may be called is called, unless the last message has the result of a call.

    Raises:
        Refused: The tool to be called is none of the given ones, or a schema cannot be satisfied.
    """
    tool = _choose_tool(members)
    if tool is not None:
        return _plan(json.dumps(make_value(tool.parameters)), tool.name)
    choices = _dig(members, "structured_outputs", "choice") or members.get("guided_choice")
    if choices:
        return _plan(str(choices[0]))
    schema = _find_schema(members)
    return FREE if schema is None else _plan(json.dumps(make_value(schema)))


def _plan(text: str, tool: str | None = None) -> OutputPlan:
    return OutputPlan(tuple(_TOKEN.findall(text)), tool)


def _choose_tool(members: Members) -> _Tool | None:
    tools = [read for tool in members.get("tools") or () if (read := _read_tool(tool))]
    choice = members.get("tool_choice")
    if isinstance(choice, dict):
        # Anthropic spells all choices as objects, the others only a tool's name.
        kind = choice.get("type")
        name = choice.get("name") or _dig(choice, "function", "name")
        choice = {"any": "required", "tool": name, "function": name}.get(str(kind), kind)
    if not tools or choice == "none":
        if choice in (None, "none", "auto"):
            return None
        raise malformed("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice in (None, "auto"):
        return None if _ends_with_result(members) else tools[0]
    if choice == "required":
        return tools[0]
    for tool in tools:
        if tool.name == choice:
            return tool
    raise Refused(400, f"The tool {choice!r} is none of `tools`.", param="tool_choice")


def _read_tool(tool: object) -> _Tool | None:
    """Read one of the client's tools; None if it is one that an engine may have itself."""
    if not isinstance(tool, dict):
        raise malformed("Input should be a valid dictionary", "tools")
    described = tool.get("function", tool)
    name = _dig(described, "name")
    if isinstance(name, str):
        schema = described.get("parameters") or described.get("input_schema")
        return _Tool(name, schema or _ANY_OBJECT)
    if tool.get("type", "function") == "function":
        raise malformed("Field required: a tool's name", "tools")
    return None


def _ends_with_result(members: Members) -> bool:
    turns = members.get("messages") or members.get("input")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(last, dict):
        return False
    content = last.get("content")
    parts = content if isinstance(content, list) else []
    return (
        last.get("role") == "tool"
        or last.get("type") == "function_call_output"
        or any(_dig(part, "type") == "tool_result" for part in parts)
    )


def _find_schema(members: Members) -> Any:  # noqa: ANN401 - any JSON value
    """Find the schema of the answer: each API has it elsewhere."""
    spelled = (
        members.get("response_format"),
        _dig(members, "text", "format"),
        _dig(members, "output_config", "format"),
    )
    for wanted in spelled:
        match _dig(wanted, "type"):
            case "json_object":
                return _ANY_OBJECT
            case "json_schema":
                schema = _dig(wanted, "json_schema", "schema") or _dig(wanted, "schema")
                if schema is None:
                    raise malformed("Field required: a schema", "response_format")
                return schema
    guiding = _dig(members, "structured_outputs", "json") or members.get("guided_json")
    return _parse_schema(guiding) if isinstance(guiding, str) else guiding


def _parse_schema(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise malformed(f"the schema is no JSON: {error}", "structured_outputs") from error


def _dig(value: object, *names: str) -> Any:  # noqa: ANN401 - any JSON value
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
