"""How the texts of settings are read, and what is allowed in them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

from pdrouter.quantities import parse_size, parse_time
from pdrouter.settings.choices import NEVER_FORWARDED, TokenObservation
from pdrouter.settings.controls import RANK_PREFIX

MIB = 1024 * 1024
LONGEST_TARGET_S = 86_400
"""Time for a first token that anybody may ask for: a request that is due later waits no longer."""
_CLASS = re.compile(r"[A-Za-z0-9][-\w.]{0,62}", re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?|\*")
_HOST_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_LABEL = re.compile(r"(?:[a-z0-9][-a-z0-9.]*/)?[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)


def _write(value: Any) -> str:  # noqa: ANN401 - any setting's
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.15g}"
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


@dataclass(frozen=True, slots=True)
class ValueKind:
    """How the text of a variable is read.

    Attributes:
        parse: returns the value; raises ValueError if it is not allowed.
        allowed: what is allowed, in words.
        write: returns a text that would be read as a value.
    """

    parse: Callable[[str], Any]
    allowed: str
    write: Callable[[Any], str] = _write


def number(
    convert: Callable[[str], float], words: str, low: float, high: float, *, above: bool = False
) -> ValueKind:
    """Return the kind of numbers within bounds.

    Args:
        convert: reads a number.
        words: what it is, for people.
        low: the lowest value.
        high: the highest value.
        above: whether the lowest value itself is not allowed.
    """

    def parse(text: str) -> float:
        value = convert(text)
        if not low <= value <= high or (above and value == low):
            raise ValueError(text)
        return value

    return ValueKind(parse, f"{words} {'above' if above else 'from'} {low} to {high}")


def time_in(
    unit_s: float, words: str, low: float, high: float, *, above: bool = False
) -> ValueKind:
    """Return the kind of times within bounds, given in a unit.

    Args:
        unit_s: seconds that a bare number's unit has.
        words: what that unit is called, for people.
        low: the lowest value.
        high: the highest value.
        above: whether the lowest value itself is not allowed.
    """
    return number(lambda text: parse_time(text, unit_s), words, low, high, above=above)


def seconds(low: float, high: float, *, above: bool = False) -> ValueKind:
    """Return the kind of times within bounds, in seconds."""
    return time_in(1, "seconds, or a time such as 500ms or 1m30s,", low, high, above=above)


def size(low: int, high: int) -> ValueKind:
    """Return the kind of numbers of bytes within bounds."""
    return number(parse_size, "bytes, or a size such as 64Mi,", low, high)


def choice(*options: str) -> ValueKind:
    """Return the kind of texts that are one of these; case, and `-` or `_`, make no difference."""
    return enumeration(str, *options)


def enumeration(kind: Callable[[str], Any], *options: str) -> ValueKind:
    """Return the kind of members of an enumeration, which have these values."""
    known = {_fold(option): option for option in options}

    def parse(text: str) -> Any:  # noqa: ANN401 - any enumeration's
        folded = _fold(text)
        if folded not in known:
            raise ValueError(text)
        return kind(known[folded])

    return ValueKind(parse, "one of " + ", ".join(options))


def _fold(text: str) -> str:
    return text.lower().replace("_", "-")


def _parse_boolean(text: str) -> bool:
    # Beside the spellings that aibrix (Go's ParseBool) accepts, those of YAML and of shells.
    word = text.lower()
    if word in {"1", "t", "true", "y", "yes", "on"}:
        return True
    if word in {"0", "f", "false", "n", "no", "off"}:
        return False
    raise ValueError(text)


def _parse_host_name(text: str) -> str:
    labels = text.split(".")
    # The last one of a name is no number: that would be an address.
    if not all(map(_HOST_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
        raise ValueError(text)
    return text


def _parse_bind(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(text)
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(text)
    return host or "0.0.0.0", int(port)


def _write_bind(value: tuple[str, int]) -> str:
    host, port = value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str, separator: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(separator) if part.strip())
    if not parts:
        raise ValueError(text)
    return parts


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.lower() for name in _split(text, ","))


def _parse_labels(text: str) -> tuple[str, ...]:
    names = _split(text, ",")
    if not all(map(_LABEL.fullmatch, names)):
        raise ValueError(text)
    return names


def _parse_headers(text: str) -> tuple[str, ...]:
    names = _parse_names(text)
    if any(name in NEVER_FORWARDED or name.startswith(RANK_PREFIX) for name in names):
        raise ValueError(text)
    return names


def _parse_buckets(text: str) -> tuple[int, ...]:
    buckets = tuple(int(bucket) for bucket in text.split(","))
    if any(low >= high for low, high in pairwise((0, *buckets))):
        raise ValueError(text)
    return buckets


def _parse_files(text: str) -> tuple[tuple[str, str], ...]:
    files: dict[str, str] = {}
    for part in _split(text, ","):
        name, _, path = (piece.strip() for piece in part.partition("="))
        if not (name and path) or name in files:
            raise ValueError(text)
        files[name] = path
    return tuple(files.items())


def _parse_classes(text: str) -> tuple[tuple[str, float], ...]:
    classes: dict[str, float] = {}
    for part in _split(text, ","):
        name, _, target = (piece.strip() for piece in part.lower().partition("="))
        target_s = parse_time(target, 1)
        named = _CLASS.fullmatch(name) and name not in classes
        if not (named and 0 < target_s <= LONGEST_TARGET_S):
            raise ValueError(text)
        classes[name] = target_s
    return tuple(classes.items())


def _parse_model_namespaces(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    rules: dict[str, tuple[str, ...]] = {}
    for part in _split(text, ";"):
        model, equals, listed = part.rpartition("=")
        model = model.strip()
        if not (equals and model and listed.strip()) or model in rules:
            raise ValueError(text)
        namespaces = _split(listed, ",")
        if not all(map(_NAMESPACE.fullmatch, namespaces)):
            raise ValueError(text)
        rules[model] = namespaces
    return tuple(rules.items())


def _parse_selectors(text: str) -> tuple[str, ...]:
    return _split(text, ";")


def _parse_addresses(text: str) -> tuple[str, ...]:
    return tuple(str(ip_address(part)) for part in _split(text, ","))


def _parse_networks(text: str) -> tuple[str, ...]:
    return tuple(str(ip_network(part)) for part in _split(text, ","))


BOOLEAN = ValueKind(_parse_boolean, "true or false")
BIND = ValueKind(_parse_bind, "host:port, with an IPv6 address in brackets, or a port", _write_bind)
PATH = ValueKind(Path, "a path")
HOST_NAME = ValueKind(_parse_host_name, "a host name")
TEXT = ValueKind(str, "any text")
SELECTORS = ValueKind(_parse_selectors, "label selectors separated by semicolons", ";".join)
NAMES = ValueKind(_parse_names, "names separated by commas")
LABELS = ValueKind(_parse_labels, "names of labels separated by commas")
HEADERS = ValueKind(
    _parse_headers, "names separated by commas, none of which steers or frames the request"
)
COUNT = number(int, "a whole number", 0, 100)
FILES = ValueKind(
    _parse_files,
    "MODEL=FILE pairs separated by commas, each model once",
    lambda files: ",".join(map("=".join, files)),
)
ADDRESSES = ValueKind(_parse_addresses, "IP addresses separated by commas")
NETWORKS = ValueKind(
    _parse_networks, "networks such as 10.8.0.0/14 or fd00:1::/32, separated by commas"
)
MODEL_NAMESPACES = ValueKind(
    _parse_model_namespaces,
    "MODEL=NAMESPACE,NAMESPACE separated by semicolons, each model once",
    lambda rules: ";".join(f"{model}={','.join(namespaces)}" for model, namespaces in rules),
)
OBSERVATION = ValueKind(
    lambda text: TokenObservation.parse(_fold(text)),
    "first-token, access-log, all, sampled:SHARE, the share above 0 and up to 1, or off",
)
CLASSES = ValueKind(
    _parse_classes,
    "NAME=TIME pairs separated by commas, each name once, times above 0 and up to "
    f"{LONGEST_TARGET_S / 3600:g}h",
    lambda classes: ",".join(f"{name}={seconds:g}" for name, seconds in classes),
)
BUCKETS = ValueKind(_parse_buckets, "ascending whole numbers separated by commas")
