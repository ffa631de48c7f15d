"""The turn of a request: it is on its way until its work is counted where it is done."""

from collections.abc import Callable


class Turn:
    """The turn of one request."""

    __slots__ = ("_on_begin",)

    def __init__(self, on_begin: Callable[[], None]) -> None:
        """Begin on the way.

        Args:
            on_begin: called once its work is counted where it is done, or will not be done.
        """
        self._on_begin: Callable[[], None] | None = on_begin

    def begin(self) -> None:
        """Note that its work is counted where it is done. Further calls change nothing."""
        on_begin, self._on_begin = self._on_begin, None
        if on_begin is not None:
            on_begin()
