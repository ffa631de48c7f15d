"""How a client's headers are changed before any engine gets them."""

from collections.abc import Mapping
from dataclasses import dataclass

from pdrouter.extproc.messages import Headers


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """What no engine gets of a client's headers, and what it gets in addition.

    Attributes:
        removed: names of headers, in lower case.
        added: headers.
    """

    removed: tuple[str, ...] = ()
    added: Headers = ()

    def apply(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers as engines get them."""
        if not self.added and headers.keys().isdisjoint(self.removed):
            return headers
        kept = {name: value for name, value in headers.items() if name not in self.removed}
        return kept | dict(self.added)


UNCHANGED = HeaderChanges()
