"""Variables that look like settings but are none: misspelt, or of another program."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from pdrouter.nearest import find_nearest
from pdrouter.settings.aibrix import UNUSED_AIBRIX_VARIABLES
from pdrouter.settings.combined import declarations

_OURS = re.compile("(?:PDROUTER|AIBRIX)_", re.IGNORECASE)
_OWN = re.compile("PDROUTER_|AIBRIX_|ROUTING_")
_PREFIX = re.compile("(?:PD_?ROUTER|AIBRIX)[_.-]?", re.IGNORECASE)
_SERVICE_LINK = re.compile(
    "_SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)$|_PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?$"
)
_SERVICE_URL = re.compile("(?:tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class UnknownName:
    """A variable that was probably meant as a setting.

    Attributes:
        name: the variable.
        nearest: the setting that was probably meant; None if none is like it.
    """

    name: str
    nearest: str | None

    def __str__(self) -> str:
        hint = f"did you mean {self.nearest}?" if self.nearest else "see `pdrouter settings`"
        return f"{self.name} is no setting of pdrouter, and has no effect: {hint}"


def find_unknown_names(environment: Mapping[str, str]) -> tuple[UnknownName, ...]:
    """Return the variables that were probably meant as settings, but are none.

    Those that Kubernetes sets for each Service, and aibrix's for what pdrouter does otherwise, are
    not among them.

    Args:
        environment: variables; an empty one counts as unset.
    """
    known = {declaration.variable for declaration in declarations().values()}
    unknown = []
    for name, value in sorted(environment.items()):
        if not value.strip() or name in known | UNUSED_AIBRIX_VARIABLES:
            continue
        if not _is_service_link(name, value) and _is_meant(name, known - environment.keys()):
            unknown.append(UnknownName(name, find_nearest_setting(name)))
    return tuple(unknown)


def _is_meant(name: str, unset: Set[str]) -> bool:
    """Return whether a variable was probably meant as a setting."""
    if _OURS.match(name):
        return True
    nearest = find_nearest(name, sorted(unset))
    # Others, such as KUBECONFIG, have neighbours that mean something to other programs.
    return nearest is not None and _OWN.match(nearest) is not None


def find_unused_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables of aibrix that are set, and that pdrouter has no use for."""
    return tuple(sorted(UNUSED_AIBRIX_VARIABLES & environment.keys()))


def find_nearest_setting(name: str) -> str | None:
    """Return the variable of the setting that a name is most like; None if none is.

    Whether a name begins with `PDROUTER_` or with `AIBRIX_` is what people remember least;
    options are known too.
    """
    declared = declarations().values()
    tails = {_PREFIX.sub("", each.variable, count=1): each.variable for each in declared}
    tails |= {each.option.lstrip("-"): each.variable for each in declared if each.option}
    tail = find_nearest(_PREFIX.sub("", name, count=1), tails)
    if tail is not None:
        return tails[tail]
    return find_nearest(name, [each.variable for each in declared])


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes sets a variable like this, for a Service of such a name."""
    if _SERVICE_LINK.search(name):
        return True
    return name.endswith("_PORT") and _SERVICE_URL.match(value) is not None
