"""An exchange with everything around it but a transport, and the events that drive it."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from factories import make_state
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engines.split import Leg
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.ext_proc_pb2 import ProcessingRequest
from pdrouter.extproc.messages import (
    BodyMode,
    Event,
    ImmediateReply,
    ProtocolConfig,
    Reply,
    RequestBody,
    RequestHeaders,
    ResponseHeaders,
)
from pdrouter.load.ledger import Ledger
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import Settings
from pdrouter.settings.choices import Aggregation
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router

PREFILL = Pod.create(
    uid="p", name="prefill-0", ip="10.0.0.1", port=8000, model="m", role=Role.PREFILL
)
DECODE = Pod.create(uid="d", name="decode-0", ip="10.0.0.2", port=8000, model="m", role=Role.DECODE)
PARAMS = (
    b'{"do_remote_prefill":true,"remote_block_ids":[[1, 2]],"remote_engine_id":"e",'
    b'"remote_request_id":"r","remote_host":"10.0.0.1","remote_port":5600,'
    b'"cookie":12345678901234567890}'
)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
BUFFERED = ProtocolConfig(BodyMode.BUFFERED, BodyMode.NONE, False)


class Post(NamedTuple):
    """A request to a prefill engine, and the tokens that its pod had to compute meanwhile."""

    headers: Mapping[str, str]
    body: Pieces
    tokens: int


class ScriptedEngines:
    """Answer prefill legs as a test says, in place of a client and what it is connected to.

    Attributes:
        ledger: what is counted.
        posts: what was sent.
        progress: who is to be told how far the last request has come, if anybody.
        answer: gives the next answer, or the failure in its place.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.posts: list[Post] = []
        self.progress: PostProgress | None = None
        self.answer: Callable[[], Any] = lambda: EngineAnswer(
            200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}"
        )

    async def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: Pieces,
        total_s: float,
        *,
        progress: PostProgress | None = None,
        once: bool = False,
        fresh: bool = False,
    ) -> EngineAnswer:
        del address, path, total_s, once
        self.progress = progress
        tokens = sum(load.tokens for load in self.ledger.loads[Leg.PREFILL].values())
        self.posts.append(Post(headers, body, tokens))
        answer = self.answer()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, FailureKind):
            raise PostFailed(answer, "10.0.0.1 broke")
        assert isinstance(answer, EngineAnswer)
        return answer


class Notes:
    """Remembers what an observer is told."""

    def __init__(self) -> None:
        self.open = 0
        self.finished: list[RequestRecord] = []
        self.answers: list[tuple[AnswerReport, Pod | None]] = []
        self.releases: list[ReleaseOutcome] = []
        self.refused_priorities: list[str] = []
        self.turns: list[tuple[str, str]] = []
        self.refused_turns: list[tuple[str, str, str]] = []

    def request_started(self, record: RequestRecord) -> None:
        self.open += 1

    def request_routed(self, record: RequestRecord) -> None:
        assert record.decision is not None

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        assert attempt in record.attempts

    def leg_retried(self, record: RequestRecord) -> None:
        assert record.retries

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        self.answers.append((report, pod))

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        self.releases.append(outcome)

    def priority_refused(self, model: str) -> None:
        self.refused_priorities.append(model)

    def prefixes_corrected(self, record: RequestRecord) -> None:
        assert record.prefixes_gone or record.prefixes_found

    def turn_came(self, model: str, line: str, seconds: float) -> None:
        self.turns.append((model, line))

    def turn_refused(self, model: str, line: str, reason: str) -> None:
        self.refused_turns.append((model, line, reason))

    def request_finished(self, record: RequestRecord) -> None:
        self.open -= 1
        self.finished.append(record)


def sglang(pod: Pod, **changes: Any) -> Pod:
    pairing = pod.pairing._replace(engine="sglang")
    return replace(pod, engine="sglang", pairing=pairing, **changes)


def bare(event: Event) -> Event:
    """An event without the message that it comes from, its attributes, and what was measured."""
    if isinstance(event, RequestHeaders | ResponseHeaders):
        return structs.replace(event, context=ProcessingRequest(), attributes={}, count=0, size=0)
    return event


SETTINGS: Mapping[str, Any] = {
    "routing_algorithm": "pd",
    "aggregation": Aggregation.NEVER,
    "prefill_retries": 0,
    "forward_headers": ("x-extra",),
    "expected_output_tokens": 100,
}
"""What is set for these exchanges; all else has its default."""


class Bench:
    """An exchange with everything around it."""

    def __init__(
        self,
        pods: Collection[Pod] = (PREFILL, DECODE),
        *,
        tokenizers: PromptTokenizers | None = None,
        max_body_bytes: int = 1_000_000,
        max_held_bytes: int = 10_000_000,
        around: Mapping[str, Any] = MappingProxyType({}),
        clock: Callable[[], float] | None = None,
        client: Any = None,
        **settings: Any,
    ) -> None:
        """Put everything together as the application does, but for engines and telemetry.

        Args:
            pods: the pods.
            tokenizers: count prompts' tokens; None for none.
            max_body_bytes: the largest body that is held.
            max_held_bytes: what all bodies may take.
            around: what else the exchanges work with, by its name in `Surroundings`.
            clock: gives the time of what is learnt; None for that of the machine.
            client: sends what the router sends to engines; None for what this bench scripts.
            settings: what differs from the settings of these tests.
        """
        chosen = Settings(**{**SETTINGS, **settings})
        self.cache = PodCache()
        self.cache.replace(pods)
        self.ledger = Ledger(clock=clock or time.monotonic)
        self.state = make_state(
            self.ledger, whole=WholeServing(chosen.handover_s), clock=clock or (lambda: 0.0)
        )
        self.prefill = ScriptedEngines(self.ledger)
        self.notes = Notes()
        self.bodies = HeldBodies(max_body_bytes, max_held_bytes)
        self.exchanges = Exchanges(
            chosen,
            Surroundings(
                cache=self.cache,
                router=create_router(chosen, self.state),
                client=client or self.prefill,  # type: ignore[arg-type]
                observer=self.notes,
                tokenizers=tokenizers or PromptTokenizers({}, 1.0, 1),
                bodies=self.bodies,
                **around,
            ),
        )
        self.sent: list[bytes] = []
        self.interrupted = False
        self.exchange = self.open()

    def open(self) -> Exchange:
        return self.exchanges.open(self._take, self._interrupt)

    async def _take(self, data: bytes) -> None:
        self.sent.append(data)

    def _interrupt(self) -> None:
        self.interrupted = True

    async def tell(self, *events: Event) -> list[Reply | None]:
        """Return the reply to each event; None where there is none."""
        return [await self.exchange.handle(event) for event in events]

    def close(self) -> RequestRecord:
        self.exchange.close()
        assert self.notes.open == 0
        assert self.ledger.snapshot() == {}
        assert self.bodies.bytes == 0
        return self.notes.finished[-1]


def request_headers(
    path: str = "/v1/chat/completions",
    method: str = "POST",
    *,
    end_of_stream: bool = False,
    config: ProtocolConfig | None = BUFFERED,
    extra: Mapping[str, str] | None = None,
    **headers: str,
) -> RequestHeaders:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHeaders(
        {":path": path, ":method": method, **named, **(extra or {})},
        end_of_stream,
        protocol_config=config,
    )


def request_body(content: Any = None, *, end_of_stream: bool = True) -> RequestBody:
    data = content if isinstance(content, bytes) else json.dumps(content or CHAT).encode()
    return RequestBody(data, end_of_stream)


def response_headers(status: str = "200") -> ResponseHeaders:
    return ResponseHeaders({":status": status})


def local_reply(details: str, attempts: float | None, status: str = "503") -> ResponseHeaders:
    attributes: dict[str, Any] = {"response.code_details": details}
    if attempts is not None:
        attributes["upstream.request_attempt_count"] = attempts
    return ResponseHeaders({":status": status}, attributes=attributes)


def error_of(reply: Reply | None) -> tuple[int, str]:
    assert isinstance(reply, ImmediateReply)
    assert ("content-type", "application/json") in reply.headers
    return reply.status, json.loads(reply.body)["error"]["code"]
