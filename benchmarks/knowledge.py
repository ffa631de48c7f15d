"""What one knowledge of several workers costs: by journals, or by asking one process.

`python -m benchmarks.knowledge`. A request here is what one over two pods tells: that it is in
flight on both, that a prompt is cached, what its legs have taught. Without the choice itself and
without requests' own work: what is left is the price of knowing the same.

* journals: as the router does it. The worker that serves a request notes the changes, and each
  other one makes them. Nothing waits.
* asking: one process makes the changes, and is asked for each choice over a Unix socket. What is
  told waits for the next question; the answer has the pods, and the scores of all candidates for
  people. A worker has several requests on their way at once.
"""

import argparse
import asyncio
import multiprocessing
import os
import struct
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import msgspec
import uvloop

from pdrouter.cluster.router_group import RouterGroup
from pdrouter.engines.split import Leg
from pdrouter.journal.journal import Journal
from pdrouter.journal.language import Change, LegLetGo
from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.load.legs_in_flight import Scope
from pdrouter.routing.state import RoutingState
from pdrouter.settings import Settings
from pdrouter.wiring.knowledge import create_knowledge
from pdrouter.wiring.sharing import LANGUAGE, Sharing

BLOCKS = 30
"""Of a prompt of 8 KB."""
PODS = 8
UIDS = [f"7f3c9a52-0d1e-4b6f-9c58-{number:012}" for number in range(2 * PODS)]
LENGTH = struct.Struct("<I")


class Question(msgspec.Struct, array_like=True, gc=False):
    """What a worker asks: a request, and the changes since its last question."""

    number: int
    hashes: tuple[int, ...]
    tokens: int
    changes: bytes


class Answer(msgspec.Struct, array_like=True, gc=False):
    """Which pods, and the scores of all."""

    number: int
    prefill: str
    decode: str
    scores: tuple[float, ...]


def make_hashes(number: int) -> tuple[int, ...]:
    return tuple((number * BLOCKS + block) * 0x9E3779B97F4A7C15 % 2**64 for block in range(BLOCKS))


def serve(state: RoutingState, number: int, hashes: tuple[int, ...]) -> list[Callable[[], None]]:
    """Return what makes the changes of a request, turn by turn of its worker's loop."""
    prefill, decode = UIDS[number % PODS], UIDS[PODS + number % PODS]
    held: list[Scope] = []

    def begin() -> None:
        held.append(state.ledger.start(Leg.DECODE, decode, 700))
        state.decoded.expect(hashes, decode, 2000)
        state.prefixes.add(hashes, prefill, 500)
        held.append(state.ledger.start(Leg.PREFILL, prefill, 500, None, 1500))

    def hand_over() -> None:
        held[1].complete(500)
        held[1].release()
        state.failures.note_success(prefill, Leg.PREFILL, 1.0, "m")
        state.prefixes.confirm(hashes, prefill, (), BLOCKS)

    def answer() -> None:
        state.failures.note_success(decode, Leg.DECODE, 1.0, "m")

    def end() -> None:
        held[0].release()

    return [begin, hand_over, answer, end]


def create_state(sharing: Sharing) -> RoutingState:
    return create_knowledge(Settings(), sharing, RouterGroup()).state


async def measure_alone(requests: int) -> float:
    """Return the microseconds that the changes of a request take one process."""
    state = create_state(Sharing())
    start = time.process_time()
    for number in range(requests):
        for step in serve(state, number, make_hashes(number)):
            step()
    return (time.process_time() - start) / requests * 1e6


async def measure_journals(requests: int) -> tuple[float, float]:
    """Return the microseconds of a request for the worker that serves it, and for another one."""
    layout = Layout(2)
    descriptor = create_memory(layout)
    journals = [Journal(SharedMemory(descriptor, layout), one, LANGUAGE) for one in range(2)]
    one, other = (create_state(Sharing(journal)) for journal in journals)
    for journal in journals:
        await journal.join()
    start = time.process_time()
    for number in range(requests):
        for step in serve(one, number, make_hashes(number)):
            step()
            journals[0].flush()
    noted = time.process_time()
    other.catch_up()
    taken = time.process_time()
    os.close(descriptor)
    return (noted - start) / requests * 1e6, (taken - noted) / requests * 1e6


class Decider(asyncio.Protocol):
    """The process that is asked; it knows the pods and chooses the next ones."""

    def __init__(self, state: RoutingState) -> None:
        self.state = state
        self.buffer = b""
        self.decode = msgspec.msgpack.Decoder(list[Question]).decode
        self.encode = msgspec.msgpack.Encoder().encode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data
        while len(buffer) >= 4 and len(buffer) >= 4 + LENGTH.unpack_from(buffer)[0]:
            end = 4 + LENGTH.unpack_from(buffer)[0]
            self.answer(self.decode(buffer[4:end]))
            buffer = buffer[end:]
        self.buffer = buffer

    def answer(self, questions: list[Question]) -> None:
        answers = []
        for one in questions:
            LANGUAGE.decode(one.changes)
            for step in serve(self.state, one.number, one.hashes):
                step()
            place = one.number % PODS
            scores = tuple(0.1 * pod for pod in range(2 * PODS))
            answers.append(Answer(one.number, UIDS[place], UIDS[PODS + place], scores))
        body = self.encode(answers)
        self.transport.write(LENGTH.pack(len(body)) + body)  # type: ignore[attr-defined]


class Asking(asyncio.Protocol):
    """A worker's end: the questions of one turn of the loop go together."""

    def __init__(self) -> None:
        self.buffer = b""
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(list[Answer]).decode
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        self.questions: list[Question] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    async def ask(self, question: Question) -> Answer:
        loop = asyncio.get_running_loop()
        if not self.questions:
            loop.call_soon(self.send)
        self.questions.append(question)
        future = self.waiting[question.number] = loop.create_future()
        answer: Answer = await future
        return answer

    def send(self) -> None:
        body = self.encode(self.questions)
        self.questions = []
        self.transport.write(LENGTH.pack(len(body)) + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data
        while len(buffer) >= 4 and len(buffer) >= 4 + LENGTH.unpack_from(buffer)[0]:
            end = 4 + LENGTH.unpack_from(buffer)[0]
            for answer in self.decode(buffer[4:end]):
                self.waiting.pop(answer.number).set_result(answer)
            buffer = buffer[end:]
        self.buffer = buffer


def run_decider(path: str, told: Connection) -> None:
    async def run() -> None:
        state = create_state(Sharing())
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: Decider(state), path)
        told.send(time.process_time())
        while not told.poll():
            await asyncio.sleep(0.05)
        told.recv()
        told.send(time.process_time())
        server.close()

    uvloop.run(run())


def list_changes() -> list[Change]:
    """Return what is told of a request after the choice."""
    verbs = {
        verb.change.__name__: verb.change for those in LANGUAGE.verbs.values() for verb in those
    }
    hashes, at = make_hashes(0), 1000.0
    return [
        LegLetGo(at=at, number=1, completed=500, cached=1500),
        verbs["FailureMemory_note_success"](at, UIDS[0], Leg.PREFILL, at, "m"),
        verbs["PrefixIndex_confirm"](at, hashes, UIDS[0], (), BLOCKS),
        verbs["FailureMemory_note_success"](at, UIDS[1], Leg.DECODE, at, "m"),
        LegLetGo(at=at, number=2, completed=None, cached=0),
    ]


async def measure_asking(requests: int, at_once: int) -> tuple[float, float, list[float]]:
    """Return the CPU of a request in the worker and in the decider, and the waits, in µs."""
    changes = list_changes()
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "socket")
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=run_decider, args=(path, theirs)
        )
        process.start()
        before = await asyncio.to_thread(ours.recv)
        loop = asyncio.get_running_loop()
        transport, asking = await loop.create_unix_connection(Asking, path)
        numbers = iter(range(requests))

        async def send() -> None:
            for number in numbers:
                told = LANGUAGE.encode((number, changes))
                question = Question(number, make_hashes(number), 700, told)
                start = time.perf_counter()
                await asking.ask(question)
                waits.append(time.perf_counter() - start)

        start = time.process_time()
        await asyncio.gather(*(send() for _ in range(at_once)))
        own = time.process_time() - start
        hashing = time.process_time()
        for number in range(requests):
            make_hashes(number)
        own -= time.process_time() - hashing
        ours.send(None)
        other = await asyncio.to_thread(ours.recv) - before
        transport.close()
        process.join()
    return own / requests * 1e6, other / requests * 1e6, [wait * 1e6 for wait in waits]


async def main(requests: int) -> None:
    hashing = time.process_time()
    for number in range(requests):
        make_hashes(number)
    hashed = (time.process_time() - hashing) / requests * 1e6
    alone = await measure_alone(requests) - hashed
    print(f"one process: {alone:.0f} µs of CPU for the changes of a request")
    own, other = await measure_journals(requests)
    print(
        f"journals: {own - hashed:.0f} µs where it is served,"
        f" {other:.0f} µs for each other worker; no wait"
    )
    for at_once in (1, 16):
        own, other, waits = await measure_asking(requests, at_once)
        waits.sort()
        p99 = waits[len(waits) * 99 // 100]
        print(
            f"asking, {at_once} at once: {own:.0f} µs in the worker, {other:.0f} µs in the process"
            f" that is asked; wait {median(waits):.0f} µs, p99 {p99:.0f} µs"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    uvloop.run(main(parser.parse_args().requests))
