"""What one worker does for all: as long as it runs, and then the next one."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from pdrouter.journal.journal import Journal

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Something that goes on until it is cancelled."""

_AWAY_S = 3.0
"""A worker that was not seen for so long does nothing for the others any more."""
_LOOK_S = 0.25


async def work_while_leading(journal: Journal, work: Work) -> None:
    """Do something whenever no worker before this one runs, until cancelled.

    For a moment two workers may do it, or none: it must be such that this does no harm.
    """
    while True:
        if journal.leads(_AWAY_S):
            await _lead(journal, work)
        await asyncio.sleep(_LOOK_S)


async def _lead(journal: Journal, work: Work) -> None:
    task = asyncio.create_task(work())
    try:
        while not task.done() and journal.leads(_AWAY_S):
            await asyncio.wait((task,), timeout=_LOOK_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()  # It has failed, and so does this.
