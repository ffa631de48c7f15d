"""The contract of memories of what workers hold for a while."""

from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

from pdrouter.journal.language import Change


class Holder(Protocol):
    """Keeps what workers hold for a while, such as legs that they have in flight.

    Attributes:
        held: how a worker tells that it holds something.
        let_go: how it tells that it does not any more.
    """

    held: ClassVar[type[Change]]
    let_go: ClassVar[type[Change]]

    def take(self, worker: int, change: Any, /) -> None:  # noqa: ANN401 - `held`
        """Take what another worker holds, unless it is known."""

    def drop_one(self, worker: int, change: Any, /) -> None:  # noqa: ANN401 - `let_go`
        """Let go what another worker has held, if it is known."""

    def drop(self, worker: int) -> None:
        """Let go everything that another worker holds."""

    def list_own(self) -> Iterable[Change]:
        """Return what this worker holds."""
