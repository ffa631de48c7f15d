"""What an API server would say of an object, without one.

Built-in kinds go through kubernetes-validate. Custom resources go through their CRD, in the order
of an API server: defaults, the structural schema, in which an unknown field is an error (strict
field validation), the CEL rules.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml
from manifests import ROOT, Object

CRDS = ROOT.parent / "shared" / "crds"
KUBERNETES = "1.37"

# Their CRDs are not at hand. test_monitoring.py looks at those of the Prometheus operator,
# test_autoscaling.py at KEDA's, and test_real_envoy.py at what Envoy makes of a SecurityPolicy.
UNKNOWN_KINDS = {"PodMonitor", "PrometheusRule", "ScaledObject", "SecurityPolicy"}

# Names that CEL reserves; a CRD's rules write them with underscores around.
_RESERVED = frozenset(
    {
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    }
)
_ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}

Schema = dict[str, Any]


@functools.cache
def load_schemas() -> dict[tuple[str, str], Schema]:
    """Return the schemas of the CRDs by apiVersion and kind."""
    # The C loader: there are three megabytes of them.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]): version[
            "schema"
        ]["openAPIV3Schema"]
        for path in sorted(CRDS.glob("*.yaml"))
        for crd in yaml.load_all(path.read_bytes(), Loader=loader)
        if crd and crd["kind"] == "CustomResourceDefinition"
        for version in crd["spec"]["versions"]
    }


def is_custom(one: Object) -> bool:
    """Whether the kind is one of a CRD rather than built into Kubernetes."""
    group = one["apiVersion"].rpartition("/")[0]
    return ("." in group and not group.endswith(".k8s.io")) or group == "gateway.networking.k8s.io"


def find_problems(one: Object) -> list[str]:
    """Return what is wrong with an object, each with its field."""
    return _check_custom(one) if is_custom(one) else _check_builtin(one)


def _check_builtin(one: Object) -> list[str]:
    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _check_custom(one: Object) -> list[str]:
    schema = load_schemas().get((one["apiVersion"], one["kind"]))
    if schema is None:
        return [f"apiVersion: no CRD for {one['kind']} of {one['apiVersion']}"]
    filled = _fill_defaults(one, schema)
    validator = jsonschema.Draft202012Validator(_compile(one["apiVersion"], one["kind"]))
    problems = [
        f"{error.json_path[2:]}: {error.message}" for error in validator.iter_errors(filled)
    ]
    return problems or list(_broken_rules(filled, schema, ""))


@functools.cache
def _compile(api_version: str, kind: str) -> Schema:
    return _make_strict(load_schemas()[api_version, kind], top=True)


def _make_strict(schema: Schema, *, top: bool = False) -> Schema:
    """Return the schema with unknown fields forbidden, in the dialect of jsonschema.

    Only along the structure: what stands in `anyOf` and the like constrains values and names fields
    that the structure declares.
    """
    strict = {key: value for key, value in schema.items() if key not in {"format", "type"}}
    if "type" in schema and not schema.get("x-kubernetes-int-or-string"):
        nullable = schema.get("nullable", False)
        strict["type"] = [schema["type"], "null"] if nullable else schema["type"]
    if "items" in schema:
        strict["items"] = _make_strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _make_strict(schema["additionalProperties"])
    if "properties" in schema:
        strict["properties"] = {
            name: _make_strict(child) for name, child in schema["properties"].items()
        }
        if top:
            strict["properties"]["metadata"] = {"type": "object"}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict


def _fill_defaults(value: Any, schema: Schema) -> Any:
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        defaults = {
            name: child["default"] for name, child in properties.items() if "default" in child
        }
        return {
            name: _fill_defaults(member, _child(schema, name))
            for name, member in {**defaults, **value}.items()
        }
    if isinstance(value, list):
        return [_fill_defaults(item, schema.get("items", {})) for item in value]
    return value


def _child(schema: Schema, name: str) -> Schema:
    declared = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
    return declared if isinstance(declared, dict) else {}


def _broken_rules(value: Any, schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # Rules about a change have nothing to say of a new object.
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], _escape(value, schema)):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _broken_rules(member, _child(schema, name), f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken_rules(item, schema.get("items", {}), f"{path}[{index}]")


@functools.cache
def _program(rule: str) -> cel.Program:
    return cel.compile(rule)


def _holds(rule: str, value: Any) -> bool:
    # An error of the engine ends the test: a rule that is not evaluated proves nothing.
    verdict = _program(rule).execute({"self": value})
    assert isinstance(verdict, bool)
    return verdict


def _escape(value: Any, schema: Schema) -> Any:
    """Return the value with the names that its fields have in rules; keys of maps stay."""
    if isinstance(value, Mapping):
        return {
            _escape_name(name) if name in schema.get("properties", {}) else name: _escape(
                member, _child(schema, name)
            )
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [_escape(item, schema.get("items", {})) for item in value]
    return value


def _escape_name(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    for text, replacement in _ESCAPES.items():
        name = name.replace(text, replacement)
    return name
