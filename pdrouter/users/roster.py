"""The users of a file: their keys, models and limits."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pdrouter.cluster.yaml_lines import YamlInvalid, YamlReader, compose, is_null
from pdrouter.users.keys import DigestInvalid, check_digest
from pdrouter.users.user import UNLIMITED, Limits, User

FILE_KEYS = ("users", "default_limits", "model_limits")
USER_KEYS = ("name", "keys", "models", "limits", "model_limits")
LIMIT_KEYS = tuple(Limits.__struct_fields__)
ANY_MODEL = "*"
"""Name of the limits of each model that has none of its own."""

LONGEST_NAME = 128
_MOST = 10**12
_MOST_DIGITS = 20
_UNLIMITED = "unlimited"
_NOTHING = "tag:yaml.org,2002:null"
_SHOWN = 20
_SUSPECT = 12
"""Characters of the shortest text that is not shown, unless it is a name."""
_LINE = re.compile(r"line \d+")

_NO_LIMITS: Mapping[str, Limits] = MappingProxyType({})


class RosterInvalid(Exception):
    """A text does not say who the users are; the message says where and why, and shows no key."""


class Roster(msgspec.Struct, frozen=True):
    """Users, as a file says them.

    Attributes:
        users: users by name, in the order of the file; with the default limits where they have
            none of their own.
        by_digest: the same by the digests of their keys.
        default_limits: limits of users who have none of their own.
        model_limits: how much of a model passes of all users together, by its name or `*`.
    """

    users: Mapping[str, User] = MappingProxyType({})
    by_digest: Mapping[str, User] = MappingProxyType({})
    default_limits: Limits = UNLIMITED
    model_limits: Mapping[str, Limits] = _NO_LIMITS

    def name_user(self, name: str) -> User:
        """Return a user by name: one of the file, or else one with the default limits."""
        return self.users.get(name) or User(name, limits=self.default_limits)

    def complete(self, user: User) -> User:
        """Return a user of elsewhere, with the default limits where that says none."""
        return msgspec.structs.replace(user, limits=user.limits.complete(self.default_limits))


EMPTY = Roster()


def parse_roster(text: str) -> Roster:
    """Return the users that a file says, in YAML or JSON: a list of them, or an object with more.

    Raises:
        RosterInvalid: the text is no such file.
    """
    try:
        root = compose(text)
    except YamlInvalid as error:
        # What the parser quotes of the text may be a key.
        lines = _LINE.findall(str(error))
        raise RosterInvalid(f"not valid YAML{f', near {lines[-1]}' if lines else ''}") from None
    if root is None:
        return EMPTY
    reader = _Reader()
    roster = reader.read(root)
    problems = reader.problems
    if problems:
        more = len(problems) - _SHOWN
        shown = problems[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise RosterInvalid(reader.hide("; ".join(shown)))
    return roster


def _list_texts(root: Node) -> set[str]:
    """Return all texts of a document, wherever they stand."""
    texts: set[str] = set()
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            nodes += node.value
        else:
            texts.add(str(node.value))
    return texts


class _Reader(YamlReader):
    def __init__(self) -> None:
        super().__init__()
        self._users: dict[str, User] = {}
        self._by_digest: dict[str, User] = {}
        self._names = {*FILE_KEYS, *USER_KEYS, *LIMIT_KEYS}
        self._texts: set[str] = set()

    def hide(self, problems: str) -> str:
        """Return what is wrong without what may be a key: it may stand in any place."""
        secrets = [text for text in self._texts - self._names if len(text) >= _SUSPECT]
        for text in sorted(secrets, key=len, reverse=True):
            problems = problems.replace(repr(text), "a text").replace(text, "(not shown)")
        return problems

    def read(self, root: Node) -> Roster:
        self._texts = _list_texts(root)
        members: Mapping[str, Node] = {"users": root}
        if not isinstance(root, SequenceNode):
            members = self.members(root, "the file", FILE_KEYS)
        defaults = self._read_limits(members.get("default_limits"), "default_limits", UNLIMITED)
        for node in self._list(members.get("users"), "users"):
            self._read_user(node, defaults)
        by_model = self._read_models(members.get("model_limits"), "model_limits")
        return Roster(
            MappingProxyType(self._users), MappingProxyType(self._by_digest), defaults, by_model
        )

    def _read_user(self, node: Node, defaults: Limits) -> None:
        members = self.members(node, "a user", USER_KEYS, required=("name",))
        if "name" not in members:
            return
        name = self.text(members["name"], "the name of a user").strip()
        self._names.add(name)
        if len(name) > LONGEST_NAME or not name.isprintable():
            self.refuse(members["name"], f"a name has at most {LONGEST_NAME} printable characters")
        if name in self._users:
            self.refuse(members["name"], f"there are two users {name!r}")
        what = f"user {name!r}"
        models = None
        if "models" in members:
            listed = self._list(members["models"], f"models of {what}")
            models = tuple(self.text(each, f"a model of {what}").strip() for each in listed)
            self._names.update(models)
        user = User(
            name,
            models,
            self._read_limits(members.get("limits"), f"limits of {what}", defaults),
            self._read_models(members.get("model_limits"), f"model_limits of {what}"),
        )
        self._users[name] = user
        keys = members.get("keys")
        if isinstance(keys, ScalarNode) and keys.tag != _NOTHING:
            self._read_key(keys, user)
        else:
            for key in self._list(keys, f"keys of {what}"):
                self._read_key(key, user)

    def _read_key(self, node: Node, user: User) -> None:
        written = node.value if isinstance(node.value, str) else ""
        try:
            digest = check_digest(written.strip())
        except DigestInvalid as error:
            self.refuse(node, f"a key of user {user.name!r}: {error}")
            return
        other = self._by_digest.setdefault(digest, user)
        if other is not user:
            self.refuse(node, f"users {other.name!r} and {user.name!r} have the same key")

    def _read_models(self, node: Node | None, what: str) -> Mapping[str, Limits]:
        if node is None or is_null(node):
            return _NO_LIMITS
        if not isinstance(node, MappingNode):
            self.refuse(node, f"{what} must be limits by the names of models")
            return _NO_LIMITS
        limits: dict[str, Limits] = {}
        for name_node, value in node.value:
            name = self.text(name_node, f"the name of a model in {what}").strip()
            self._names.add(name)
            if name in limits:
                self.refuse(name_node, f"model {name!r} occurs twice in {what}")
            limits[name] = self._read_limits(value, f"{what} for {name!r}", UNLIMITED)
        return MappingProxyType(limits)

    def _read_limits(self, node: Node | None, what: str, defaults: Limits) -> Limits:
        if node is None:
            return defaults
        if is_null(node):
            return UNLIMITED
        members = self.members(node, what, LIMIT_KEYS)
        values: dict[str, Any] = {
            name: self._read_limit(members[name], f"{name} of {what}")
            if name in members
            else getattr(defaults, name)
            for name in LIMIT_KEYS
        }
        return Limits(**values)

    def _read_limit(self, node: Node, what: str) -> int | None:
        written = node.value.strip() if isinstance(node.value, str) else ""
        if is_null(node) or written.lower() == _UNLIMITED:
            return None
        digits = written.replace("_", "")
        if digits.isascii() and digits.isdecimal():
            # Python reads no number of any length.
            limit = int(digits.lstrip("0")[:_MOST_DIGITS] or 0)
            if limit <= _MOST:
                return limit
        self.refuse(node, f"{what} must be a whole number from 0 to {_MOST:_}, or {_UNLIMITED}")
        return 0

    def _list(self, node: Node | None, what: str) -> list[Node]:
        return [] if node is None or node.tag == _NOTHING else self.items(node, what)
