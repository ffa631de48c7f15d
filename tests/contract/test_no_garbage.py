"""A request leaves no objects that refer to each other in a circle.

Only a search of all objects finds these. It is put off while many requests are open, and would hold
the event loop for seconds if each request had left its own.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from exchanges import Bench
from http2_peer import Client, Service
from loopback import answer_always, listen
from waiting import wait_until

from benchmarks.transports.installation import MODEL
from benchmarks.transports.messages import encode_stream, make_chat
from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.client import ClientLimits
from pdrouter.extproc.http2.stream import END, Stream
from pdrouter.extproc.wire import OpenStreams
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.engine_client import EngineClient

REQUESTS = 20
PODS = [
    Pod.create(uid=role, name=role, ip=f"10.0.0.{last}", port=8000, model=MODEL, role=role)
    for last, role in enumerate((Role.PREFILL, Role.DECODE), 1)
]


@contextmanager
def find_garbage() -> Iterator[list[str]]:
    """Give, in the end, the types of our objects that only a search of all has found."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        names = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.garbage)
        found += (name for name in names if name.startswith("pdrouter."))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_a_stream_of_envoys_leaves_none() -> None:
    bench = Bench(PODS)
    streams = OpenStreams(bench.exchanges.open)

    async def process(stream: Stream) -> None:
        await streams.carry(
            *(stream.read, stream.write, END, stream.ask_before_large),
            read_trace=lambda: stream.head.traceparent,
        )

    client = Client(Service.create(handler=process))
    messages = encode_stream(make_chat(1000), 0)
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            number = client.open()
            await client.send(number, messages, end=True)
            assert client.answers[number].status == "0"
    assert len(bench.notes.finished) == REQUESTS
    assert garbage == []


async def test_requests_to_an_engine_leave_none() -> None:
    limits = ClientLimits(connect_s=60, response_s=60, answer_bytes=1024)
    async with listen(answer_always) as server:
        with find_garbage() as garbage:
            async with EngineClient(limits) as client:
                for _ in range(REQUESTS):
                    await client.post(server.address, "/v1/completions", {}, Pieces((b"{}",)), 60)
            await wait_until(server.closed.is_set)
    assert garbage == []
