"""One exchange of the router without gRPC, HTTP and telemetry: what is left is its own code."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from random import Random
from typing import Any

from google.protobuf.struct_pb2 import Struct

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.progress import PostProgress
from pdrouter.extproc.ext_proc_pb2 import (
    HeaderMap,
    HeaderValue,
    ProcessingMode,
    ProcessingRequest,
    ProtocolConfiguration,
)
from pdrouter.extproc.messages import EXT_PROC_FILTER
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.openai.pieces import Pieces
from pdrouter.routing.state import RoutingState
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import Settings
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router

# What clients, Envoy and vLLM usually send.
_REQUEST_HEADERS = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":scheme": "http",
    ":authority": "gateway",
    "content-type": "application/json",
    "authorization": "Bearer key",
    "user-agent": "OpenAI/Python 2.8.1",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "x-forwarded-for": "10.1.1.1",
    "x-forwarded-proto": "http",
    "x-request-id": "b0b0b0b0-0000-4000-8000-000000000000",
    "x-envoy-expected-rq-timeout-ms": "600000",
    "routing-strategy": "pd",
}
_RESPONSE_HEADERS = {
    ":status": "200",
    "date": "Sat, 28 Nov 2026 10:00:00 GMT",
    "server": "uvicorn",
    "content-type": "text/event-stream; charset=utf-8",
    "x-envoy-upstream-service-time": "12",
}


class RequestBench:
    """A router that answers the same request again and again."""

    def __init__(self, prefill: Pod, decode: Pod, body: bytes, engine_answer: bytes) -> None:
        """Set up.

        Args:
            prefill: the pod of the prefill leg, of the model that the body names.
            decode: that of the decode leg.
            body: the client's.
            engine_answer: what the prefill engine answers.
        """
        settings = Settings(routing_algorithm="pd")
        cache = PodCache()
        cache.replace((prefill, decode))
        state = RoutingState(
            Ledger(),
            PrefixIndex(1 << 26, 1200, time.monotonic),
            {},
            time.monotonic,
            Random(1),
        )
        self._observer = _LastRecord()
        self._exchanges = Exchanges(
            settings,
            Surroundings(
                cache=cache,
                router=create_router(settings, state),
                client=_Engines(engine_answer),  # type: ignore[arg-type]
                observer=self._observer,
                tokenizers=PromptTokenizers({}, 1.0, 1),
                bodies=HeldBodies(len(body), len(body)),
            ),
        )
        self._messages = _write_messages(body, decode.address)

    def serve(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Carry one request from the opening of its stream to the end.

        Args:
            loop: runs it, which legs that run at once need; None where it waits for nobody.
        """
        if loop is None:
            _run(self._serve())
        else:
            loop.run_until_complete(self._serve())
        record = self._observer.record
        if record is None or record.outcome is not Outcome.OK or record.aggregated:
            raise RuntimeError(f"the request was not served in two legs: {record}")

    async def _serve(self) -> None:
        exchange = self._exchanges.open(_take, _do_nothing)
        for message in self._messages:
            await exchange.receive(message)
        exchange.close()


class _Engines:
    """In place of an `EngineClient`."""

    def __init__(self, answer: bytes) -> None:
        self._answer = EngineAnswer(200, {}, answer)

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
        del address, path, headers, body, total_s, once
        if progress is not None:
            progress.note_head(self._answer.status)
        return self._answer


class _LastRecord:
    """In place of telemetry."""

    def __init__(self) -> None:
        self.record: RequestRecord | None = None

    def request_started(self, record: RequestRecord) -> None:
        pass

    def request_routed(self, record: RequestRecord) -> None:
        pass

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        pass

    def leg_retried(self, record: RequestRecord) -> None:
        pass

    def turn_came(self, model: str, line: str, seconds: float) -> None: ...

    def turn_refused(self, model: str, line: str, reason: str) -> None: ...

    def prefixes_corrected(self, record: RequestRecord) -> None:
        """Note nothing."""

    def priority_refused(self, model: str) -> None:
        """Note nothing."""

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        pass

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        pass

    def request_finished(self, record: RequestRecord) -> None:
        self.record = record


def _write_messages(body: bytes, decode_address: str) -> list[bytes]:
    head, content, response = ProcessingRequest(), ProcessingRequest(), ProcessingRequest()
    _fill(head.request_headers.headers, {**_REQUEST_HEADERS, "content-length": str(len(body))})
    config = ProtocolConfiguration(request_body_mode=ProcessingMode.BUFFERED)
    head.protocol_config = config.SerializeToString()
    content.request_body.body = body
    content.request_body.end_of_stream = True
    _fill(response.response_headers.headers, _RESPONSE_HEADERS)
    attributes = Struct()
    attributes.update({"upstream.address": decode_address, "response.code_details": "via_upstream"})
    response.attributes[EXT_PROC_FILTER] = attributes.SerializeToString()
    return [message.SerializeToString() for message in (head, content, response)]


def _fill(header_map: HeaderMap, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        header = HeaderValue(key=name, raw_value=value.encode())
        header_map.headers.append(header.SerializeToString())


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nobody to its end."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise RuntimeError("the exchange waits")


async def _take(data: bytes) -> None:
    del data


def _do_nothing() -> None:
    pass
