"""Waiting in tests: for a condition with a generous bound, never for a time."""

import asyncio
from collections.abc import Callable

WAIT_S = 20.0
LONGER_S = 2 * WAIT_S
"""Longer than a test waits: a limit that must not be what ends something in its place."""


async def wait_until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds.

    Raises:
        TimeoutError: it did not come true.
    """
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)
