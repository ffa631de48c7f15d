"""Values that satisfy a JSON schema, as a model with guided decoding would write them."""

import math
from collections.abc import Mapping
from typing import Any

from pdrouter.tools.simulation.refusal import malformed

Schema = Mapping[str, Any]

_MAX_DEPTH = 24
_FULL_DEPTH = 4
"""How deep objects get members that they need not have."""

_FORMATS = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "duration": "P1D",
    "email": "made.up@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/made-up",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_TEXT = "made up "


def make_value(schema: object) -> object:
    """Make a value that satisfies a schema.

    Raises:
        Refused: The schema is none, or no finite value satisfies it.
    """
    try:
        return _Maker(schema).make(schema, 0)
    except (AttributeError, LookupError, RecursionError, TypeError) as error:
        raise malformed(f"the schema is invalid: {error}", "response_format") from error


class _Maker:
    """Makes values for the parts of one schema."""

    def __init__(self, root: object) -> None:
        self._root = root

    def make(self, schema: object, depth: int) -> object:
        """Make a value for a part of the schema that is nested this deep."""
        if depth > _MAX_DEPTH:
            raise malformed("the schema has no finite value", "response_format")
        if schema is True or schema == {}:
            return _TEXT.strip()
        if not isinstance(schema, dict):
            raise malformed("the schema is no object", "response_format")
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for name in ("anyOf", "oneOf"):
            if schema.get(name):
                rest = {key: value for key, value in schema.items() if key != name}
                return self.make(_merge(rest, self._choose(schema[name], depth)), depth + 1)
        return self._make_typed(schema, depth)

    def _resolve(self, schema: Schema) -> Schema:
        """Replace a reference by what it stands for, and join what must hold together."""
        resolved: Schema = {key: schema[key] for key in schema if key not in ("$ref", "allOf")}
        parts = list(schema.get("allOf", ()))
        if "$ref" in schema:
            parts.append(self._look_up(str(schema["$ref"])))
        for part in parts:
            resolved = _merge(resolved, self._resolve(part))
        return resolved

    def _look_up(self, reference: str) -> Any:  # noqa: ANN401 - any part of a JSON value
        part: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            part = part.get(step) if isinstance(part, dict) else None
        if not isinstance(part, dict):
            raise malformed(f"the schema has no {reference}", "response_format")
        return part

    def _choose(self, options: list[Schema], depth: int) -> Schema:
        """Choose null where that ends what is nested deep, the first option elsewhere."""
        ending = [option for option in options if option.get("type") == "null"]
        return ending[0] if ending and depth >= _FULL_DEPTH else options[0]

    def _make_typed(self, schema: Schema, depth: int) -> object:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if "null" in kind and depth >= _FULL_DEPTH else kind[0]
        if kind is None:
            kind = (
                "object" if "properties" in schema else "array" if "items" in schema else "string"
            )
        match kind:
            case "object":
                return self._make_object(schema, depth)
            case "array":
                return self._make_array(schema, depth)
            case "integer" | "number":
                return _make_number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
        return _make_text(schema)

    def _make_object(self, schema: Schema, depth: int) -> object:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        names = [*properties, *(name for name in required if name not in properties)]
        if depth >= _FULL_DEPTH:
            names = [name for name in names if name in required]
        return {name: self.make(properties.get(name, True), depth + 1) for name in names}

    def _make_array(self, schema: Schema, depth: int) -> object:
        leading = schema.get("prefixItems", [])
        wanted = max(schema.get("minItems", 0 if depth >= _FULL_DEPTH else 1), len(leading))
        count = min(wanted, schema.get("maxItems", wanted))
        items = schema.get("items", True)
        return [
            self.make(leading[index] if index < len(leading) else items, depth + 1)
            for index in range(count)
        ]


def _merge(first: Schema, second: Schema) -> Schema:
    """Join two schemas that must hold together, as far as their members do not contradict."""
    joined = {**first, **second}
    if "properties" in first and "properties" in second:
        joined["properties"] = {**first["properties"], **second["properties"]}
    if "required" in first and "required" in second:
        joined["required"] = [*first["required"], *second["required"]]
    return joined


def _make_number(schema: Schema, *, whole: bool) -> float:
    step: float = schema.get("multipleOf") or (1 if whole else 0)
    above: float = schema.get("exclusiveMinimum", -math.inf)
    below: float = schema.get("exclusiveMaximum", math.inf)
    low: float = max(schema.get("minimum", -math.inf), above)
    high: float = min(schema.get("maximum", math.inf), below)
    if not step:
        if low == -math.inf:
            return min(1.5, high - 1)
        return low + 1 if high == math.inf else (low + high) / 2
    if low == -math.inf:
        count = math.floor(min(1, high / step))
        return step * (count - 1 if step * count == below else count)
    count = math.ceil(low / step)
    return step * (count + 1 if step * count == above else count)


def _make_text(schema: Schema) -> str:
    text = _FORMATS.get(schema.get("format", ""), _TEXT.strip())
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", len(text))
    if len(text) < shortest:
        text = (_TEXT * math.ceil(shortest / len(_TEXT)))[:shortest]
    return text[: max(longest, shortest)]
