"""Clients of all manners, who judge what they get."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp

from benchmarks.chaos.installation import MODEL, Installation
from benchmarks.chaos.plan import Ask, Manner
from benchmarks.chaos.tally import Breach, Tally
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.prompts import prompt_digest
from pdrouter.tools.simulation.received_requests import ReceivedRequest

PATH = "/v1/chat/completions"
PATIENCE_S = 30.0
"""Bound of every request: far above all deadlines of router and Envoy together."""

_SOON_S = 0.12
"""Those who leave early do so within this time: about that of a prefill."""
_LONG_ANSWER = 400
_WORDS_UNTIL_LEAVING = 30
_UNTOUCHED = b'"x_marker" : {"n": 9007199254740993, "f":1.10, "u": "\\u00e9 \xc3\xa9"}'
"""A member that no engine and no router knows: it has to arrive as it is."""
_NOT_VALID: Sequence[bytes] = (
    b"{",
    b'{"model": "chaos", "messages": []}',
    b'{"model": "chaos", "messages": "none"}',
    b'{"model": "unknown", "messages": [{"role": "user", "content": "x"}]}',
)
_ENVELOPE = {"message", "type", "param", "code"}
_DONE = b"data: [DONE]"
_MEETING = ("bootstrap_host", "bootstrap_port", "bootstrap_room")


class _Broken(Exception):
    """A promise was broken.

    Attributes:
        breach: how.
    """

    def __init__(self, breach: Breach, detail: object) -> None:
        super().__init__(str(detail))
        self.breach = breach


class _Cut(Exception):
    """The connection ended before the answer did.

    Attributes:
        when: before or in the answer.
        request_id: the router's id of the request; None if nothing of the answer had come.
    """

    def __init__(self, when: str, request_id: str | None) -> None:
        super().__init__(when)
        self.when = when
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Clients:
    """Send requests to an installation.

    Attributes:
        installation: where to.
        session: with what. Each request has a connection of its own: leaving closes it.
        tally: gets what becomes of the requests.
    """

    installation: Installation
    session: aiohttp.ClientSession
    tally: Tally

    async def send(self, ask: Ask) -> None:
        """Send a request, judge what comes of it, and note that."""
        await self.installation.envoy_up.wait()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._send(ask)
        except _Broken as broken:
            if broken.breach is Breach.ACCEPTED and self._was_outage(begun):
                # No router was there to look at it.
                self.tally.errors[str(broken)] += 1
            else:
                self.tally.note_broken(broken.breach, f"request {ask.number}: {broken}")
                self.tally.errors[broken.breach] += 1
        except _Cut as cut:
            self.tally.cut[cut.when] += 1
            if not self._has_cause(cut, begun):
                self.tally.note_broken(Breach.CUT, f"request {ask.number}, {cut.when}")
        except TimeoutError:
            self.tally.errors[Breach.UNANSWERED] += 1
            self.tally.note_broken(Breach.UNANSWERED, f"request {ask.number}")

    async def _send(self, ask: Ask) -> None:
        match ask.manner:
            case Manner.LEAVE_EARLY:
                try:
                    async with asyncio.timeout(ask.patience * _SOON_S):
                        await self._ask(ask, stream=ask.number % 2 == 0, tokens=_LONG_ANSWER)
                except TimeoutError:
                    self.tally.left["before the answer or at its beginning"] += 1
            case Manner.LEAVE_LATE:
                leave_after = 1 + int(ask.patience * _WORDS_UNTIL_LEAVING)
                await self._ask(ask, stream=True, tokens=_LONG_ANSWER, leave_after=leave_after)
            case Manner.INVALID:
                await self._ask_wrongly(_NOT_VALID[ask.number % len(_NOT_VALID)])
            case _:
                await self._ask(ask, stream=ask.manner is Manner.STREAM, tokens=ask.tokens)

    async def _ask(
        self, ask: Ask, *, stream: bool, tokens: int, leave_after: int | None = None
    ) -> None:
        body = write_body(ask, stream=stream, tokens=tokens)
        response = await self._post(body)
        try:
            if response.status != 200:
                self.tally.errors[judge_error(response, await _read(response))] += 1
                return
            self._check_legs(response.headers)
            expected = expect_words(body, tokens, self._find_meeting(response.headers))
            if stream:
                await self._judge_stream(response, expected, leave_after)
            else:
                judge_answer(await _read(response), expected)
                self.tally.answered += 1
        finally:
            response.close()

    async def _ask_wrongly(self, body: bytes) -> None:
        response = await self._post(body)
        try:
            error = judge_error(response, await _read(response))
            if response.status not in (400, 404):
                raise _Broken(Breach.ACCEPTED, error)
            self.tally.refused += 1
        finally:
            response.close()

    async def _post(self, body: bytes) -> aiohttp.ClientResponse:
        headers = {"content-type": "application/json"}
        url = self.installation.url + PATH
        try:
            return await self.session.post(url, data=body, headers=headers)
        except aiohttp.ClientError:
            raise _Cut("before the answer", None) from None

    async def _judge_stream(
        self, response: aiohttp.ClientResponse, expected: Sequence[str], leave_after: int | None
    ) -> None:
        words: list[str] = []
        try:
            async for line in response.content:
                if line.startswith(_DONE):
                    _compare(words, expected)
                    self.tally.answered += 1
                    return
                if line.startswith(b'data: {"error"'):
                    kind = judge_envelope(line.removeprefix(b"data: "))
                    self.tally.errors[f"{kind}, in the stream"] += 1
                    return
                words += read_words(line)
                if leave_after is not None and len(words) >= leave_after:
                    _compare(words, expected[: len(words)])
                    self.tally.left["in the answer"] += 1
                    return
        except aiohttp.ClientError:
            _compare(words, expected[: len(words)])
            raise _Cut("in the answer", response.headers.get("x-request-id")) from None
        raise _Broken(Breach.UNENDED, words[-1:])

    def _check_legs(self, headers: Mapping[str, str]) -> None:
        """Check by what engines have received that both legs were right."""
        legs = self._find_legs(headers["x-request-id"])
        for _, request in legs:
            if _UNTOUCHED not in request.body:
                raise _Broken(Breach.ALTERED, request.body[:200])
        if headers.get("x-pd-decision") == "disaggregated":
            self._check_pairs(legs)

    def _check_pairs(self, legs: Sequence[tuple[SimulatedEngine, ReceivedRequest]]) -> None:
        """Check that the legs of each attempt, which have one id, were in one roleset.

        What an attempt that was given up has left is none of the others' business.
        """
        pairs: dict[str, set[str]] = {}
        for engine, request in legs:
            if engine.config.role == "decode" or request.status in (None, 200):
                found = pairs.setdefault(request.headers["x-request-id"], set())
                found.add(self.installation.find_roleset(engine))
        if not pairs or any(len(rolesets) > 1 for rolesets in pairs.values()):
            raise _Broken(Breach.MIXED_PAIR, pairs)

    def _find_meeting(self, headers: Mapping[str, str]) -> Mapping[str, Any]:
        """Return what the router has added for legs that meet in a room."""
        if self.installation.connector != "bootstrap":
            return {}
        for engine, request in self._find_legs(headers["x-request-id"]):
            if engine.config.role == "decode":
                received = json.loads(request.body)
                return {name: received[name] for name in _MEETING if name in received}
        return {}

    def _find_legs(self, request_id: str) -> list[tuple[SimulatedEngine, ReceivedRequest]]:
        """Return what engines have received for a request; after a retry, its id has a suffix."""
        return [
            (engine, request)
            for engine in self.installation.engines
            for request in engine.requests
            if (known := request.headers.get("x-request-id", "")).startswith(request_id)
            # That is not a leg, but asks to have its blocks freed.
            and not known.endswith("-release")
        ]

    def _has_cause(self, cut: _Cut, begun: float) -> bool:
        """Return whether an engine was made to cut it, or something has ended meanwhile."""
        if self._was_outage(begun):
            return True
        ends = ("prefill", "decode") if self.installation.together else ("decode",)
        legs = [] if cut.request_id is None else self._find_legs(cut.request_id)
        return any(
            engine.config.role in ends and request.outcome == "dropped" for engine, request in legs
        )

    def _was_outage(self, begun: float) -> bool:
        return self.installation.outages.overlap(begun, time.monotonic())


def write_body(ask: Ask, *, stream: bool, tokens: int) -> bytes:
    """Return the body of a request."""
    content = json.dumps(f"request {ask.number}: " + "word " * ask.words).encode()
    members = [
        b'"model": "%s"' % MODEL.encode(),
        _UNTOUCHED,
        b'"messages": [{"role": "user", "content": %s}]' % content,
        b'"max_tokens":%d' % tokens,
    ]
    if stream:
        members.append(b'"stream":true')
    if ask.manner is Manner.SEVERAL:
        members.append(b'"n": 2')
    return b"{" + b", ".join(members) + b"}"


def expect_words(
    body: bytes, tokens: int, meeting: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Return what a simulated engine answers to a request.

    Args:
        body: what the client has sent.
        tokens: how long the answer is.
        meeting: what the router has added to it.
    """
    digest = prompt_digest(PATH, {**json.loads(body), **meeting})[:8]
    return [f"{digest}-{index}" for index in range(tokens)]


def judge_answer(body: bytes, expected: Sequence[str]) -> None:
    """Check that a plain answer is that of this prompt."""
    for choice in json.loads(body)["choices"]:
        _compare(choice["message"]["content"].split(), expected)


def _compare(words: Sequence[str], expected: Sequence[str]) -> None:
    if list(words) != list(expected):
        raise _Broken(Breach.WRONG_ANSWER, f"{words} instead of {expected}")


def judge_error(response: aiohttp.ClientResponse, body: bytes) -> str:
    """Check that an answer is an error as clients understand it; return what it is."""
    kind = judge_envelope(body)
    if not 400 <= response.status < 600 or response.content_type != "application/json":
        raise _Broken(Breach.MALFORMED_ERROR, f"{response.status} {response.content_type}")
    return f"{response.status} {kind}"


def judge_envelope(body: bytes) -> str:
    """Check the body of an error; return its code."""
    try:
        answer: Any = json.loads(body)
        # SGLang's own errors are flat.
        flat = answer.pop("object", None) == "error"
        error = answer if flat else answer["error"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _Broken(Breach.MALFORMED_ERROR, body[:200]) from None
    if not isinstance(error, dict) or error.keys() != _ENVELOPE or not error["message"]:
        raise _Broken(Breach.MALFORMED_ERROR, body[:200])
    # An engine's own errors have their status as code.
    return "of an engine" if isinstance(error["code"], int) else str(error["code"])


def read_words(line: bytes) -> list[str]:
    """Return the words in a line of a stream."""
    if not line.startswith(b"data: "):
        return []
    chunk = json.loads(line.removeprefix(b"data: "))
    content = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return content.split()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except aiohttp.ClientError:
        raise _Cut("in the answer", response.headers.get("x-request-id")) from None
