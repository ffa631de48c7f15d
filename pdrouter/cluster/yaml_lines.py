"""Reads a small YAML document by its nodes, so that whatever is wrong is said with its line."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pdrouter.nearest import find_nearest

_YAML = "tag:yaml.org,2002:"
_MERGE = f"{_YAML}merge"
_NULL = f"{_YAML}null"
_PLAIN = frozenset(_YAML + name for name in ("str", "int", "float", "bool", "timestamp"))

_Pairs: TypeAlias = list[tuple[Node, Node]]


class YamlInvalid(ValueError):
    """A text is not YAML."""


def compose(text: str) -> Node | None:
    """Return the root of a document; None if it is empty.

    Raises:
        YamlInvalid: the text is not YAML, or more than one document.
    """
    try:
        # Not libyaml's, which is faster but crashes on what is nested too deeply.
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlInvalid(f"not valid YAML: {' '.join(str(error).split())}") from None


class YamlReader:
    """Takes a document apart.

    What is not as it should be is noted, and taken for absent.
    """

    def __init__(self) -> None:
        self._problems: list[tuple[int, str]] = []

    @property
    def problems(self) -> list[str]:
        """What was wrong so far, by line."""
        return [problem for _, problem in sorted(self._problems, key=lambda each: each[0])]

    def refuse(self, node: Node, problem: str) -> None:
        """Note what is wrong at a place."""
        line = line_of(node)
        self._problems.append((line, f"line {line}: {problem}"))

    def members(
        self, node: Node, what: str, keys: Collection[str], required: Collection[str] = ()
    ) -> Mapping[str, Node]:
        """Return the values of a mapping by key.

        Args:
            node: where it should be.
            what: what it describes, for people.
            keys: what it may have.
            required: what it must have.
        """
        if not isinstance(node, MappingNode):
            listed = ", ".join(keys)
            self.refuse(node, f"{what} must be written as keys ({listed}), not as {_name(node)}")
            return {}
        found: dict[str, tuple[Node, Node]] = {}
        meant: set[str | None] = set()
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else _name(key)
            if key.tag == _MERGE:
                continue
            if name in found:
                before = line_of(found[name][0])
                self.refuse(key, f"key {name!r} occurs twice, the first time in line {before}")
            elif name in keys:
                found[name] = key, value
            else:
                nearest = find_nearest(name, keys)
                hint = f"did you mean {nearest!r}?" if nearest else f"known are {', '.join(keys)}"
                self.refuse(key, f"unknown key {name!r} of {what}: {hint}")
                meant.add(nearest)
        for key, value in _find_merged(node):
            if key.value in keys:
                found.setdefault(key.value, (key, value))
        for name in required:
            if name not in found and name not in meant:
                self.refuse(node, f"{what} lacks the key {name!r}")
        return {name: value for name, (_, value) in found.items()}

    def items(self, node: Node, what: str) -> list[Node]:
        """Return the items of a list.

        Args:
            node: where it should be.
            what: what it is, for people.
        """
        if not isinstance(node, SequenceNode):
            self.refuse(node, f"{what} must be a list, but this is {_name(node)}")
            return []
        return list(node.value)

    def text(self, node: Node, what: str) -> str:
        """Return a text, which needs no quotes even if it looks like a number; empty if none.

        Args:
            node: where it should be.
            what: what it is, for people.
        """
        if not isinstance(node, ScalarNode) or node.tag not in _PLAIN:
            self.refuse(node, f"{what} must be a text, but this is {_name(node)}")
            return ""
        if not node.value.strip():
            self.refuse(node, f"{what} is empty")
        return str(node.value)


def is_null(node: Node) -> bool:
    """Return whether a value is written as null, rather than left out."""
    return node.tag == _NULL and bool(node.value)


def _find_merged(node: MappingNode) -> _Pairs:
    """Return what a mapping takes over from others by `<<`, the most important first."""
    pairs: _Pairs = []
    for key, value in node.value:
        if key.tag == _MERGE:
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(source, MappingNode):
                    pairs += [pair for pair in source.value if pair[0].tag != _MERGE]
                    pairs += _find_merged(source)
    return pairs


def line_of(node: Node) -> int:
    """Return the line that something begins in, from 1 on."""
    return int(node.start_mark.line) + 1


def _name(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if node.tag == _NULL:
        return "nothing"
    return repr(node.value) if node.tag in _PLAIN else node.tag.removeprefix(_YAML)
