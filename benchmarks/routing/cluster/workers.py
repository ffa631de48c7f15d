"""The workers of one replica of the router in a simulation: they know the same, by its journals."""

import asyncio
import os
from collections.abc import Callable, Sequence

from benchmarks.routing.cluster.events import EventQueue
from pdrouter.journal.journal import Journal
from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.wiring.sharing import LANGUAGE, Sharing


def share_knowledge(workers: int, events: EventQueue, turn_s: float) -> Sequence[Sharing]:
    """Return how each worker shares what it knows.

    Args:
        workers: how many there are.
        events: the time.
        turn_s: how long a turn of a worker's loop takes: what it notes, others see at its end.
    """
    if workers == 1:
        return (Sharing(clock=events.clock),)

    def schedule(call: Callable[[], None]) -> None:
        if turn_s:
            events.schedule(events.now + turn_s, call)
        else:
            call()

    layout = Layout(workers)
    descriptor = create_memory(layout)
    journals = [
        Journal(
            SharedMemory(descriptor, layout),
            number,
            LANGUAGE,
            clock=events.clock,
            schedule=schedule,
        )
        for number in range(workers)
    ]
    os.close(descriptor)
    for journal in journals:
        asyncio.run(journal.join())
    return [Sharing(journal) for journal in journals]
