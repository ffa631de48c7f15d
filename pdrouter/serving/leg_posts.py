"""The POSTs of one leg: one pod after another, within one deadline, each with an id of its own."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from itertools import count
from typing import TypeAlias

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.split import Leg
from pdrouter.openai.engine_errors import read_error_message
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.retry_after import read_retry_after
from pdrouter.serving.companion import Companion
from pdrouter.serving.engine_client import EngineClient, address_rank
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.statuses import DONE, Speaks, judge
from pdrouter.serving.trace import RequestTrace

WriteRequest: TypeAlias = Callable[[str], tuple[Mapping[str, str], Pieces]]
"""Gives headers, beside those that all have, and the body of a request with an id."""

_MOMENT_S = 0.05
"""By how much a wait may end before its deadline that ends with it."""


class LegPosts(msgspec.Struct, eq=False):
    """The POSTs of one leg, within one deadline.

    Attributes:
        client: sends them.
        leg: the leg.
        request: the client's request.
        headers: those of the client that all have.
        record: the request's record, which gets what is waited.
        ids: gives each an id of its own.
        deadline: when all must be over, on the monotonic clock.
        total_s: seconds for all side legs: a pod that is given less than half of them, and does not
            answer, need not be slow.
        alone: whether no others of the same leg go out beside them: those are timed together.
    """

    client: EngineClient
    leg: Leg
    request: InferenceRequest
    headers: Mapping[str, str]
    record: RequestRecord
    ids: Iterator[str]
    deadline: float
    total_s: float
    alone: bool = True

    def send(
        self, pod: Pod, write: WriteRequest, companion: Companion | None = None
    ) -> Awaitable[tuple[Attempt, EngineAnswer | None]]:
        """Try a pod; once more where it had closed the connection while that was idle.

        Args:
            pod: the pod.
            write: gives headers, beside those that all have, and the body of a request with an id.
            companion: learns how far it comes, where the last leg does not wait for its end. It
                has the first id already: no other try can have another, so that there is none.
        """
        trace = self.record.trace
        if trace is None:
            return self._send(pod, write, companion, self.headers)
        return self._send_traced(pod, write, companion, trace)

    async def _send_traced(
        self, pod: Pod, write: WriteRequest, companion: Companion | None, trace: RequestTrace
    ) -> tuple[Attempt, EngineAnswer | None]:
        with trace.time_leg(self.leg, pod) as span:
            headers = trace.replace_headers(self.headers, span)
            attempt, answer = await self._send(pod, write, companion, headers)
            span.attempt = attempt
            return attempt, answer

    async def _send(
        self,
        pod: Pod,
        write: WriteRequest,
        companion: Companion | None,
        common: Mapping[str, str],
    ) -> tuple[Attempt, EngineAnswer | None]:
        start = posted = time.monotonic()
        leg, stale, request = self.leg, 0, self.request
        # Nothing is timed where the router does other things meanwhile.
        timed = companion is None and self.alone
        if companion is not None:
            companion.request_id = next(self.ids)
        path = request.endpoint.path + request.query
        while True:
            request_id = next(self.ids) if companion is None else companion.request_id
            more, body = write(request_id)
            headers = dict(common)
            if more:
                headers.update(more)
            if pod.rank is not None:
                headers.update(address_rank(pod))
            headers["x-request-id"] = request_id
            remaining = max(0.001, self.deadline - posted)
            began = time.perf_counter()
            try:
                answer = await self.client.post(
                    pod.address,
                    path,
                    headers,
                    body,
                    remaining,
                    progress=None if companion is None else companion.progress,
                    once=True,
                    fresh=companion is not None,
                )
            except PostFailed as error:
                # Both legs have a companion's id: an engine may have seen it on that connection.
                now = time.monotonic()
                if error.stale and not stale and companion is None:
                    stale, posted = 1, now
                    continue
                seconds = now - start
                # Otherwise, its own time for a first byte is over.
                at_deadline = now - posted > remaining - _MOMENT_S
                hurried = error.kind is FailureKind.TIMEOUT and at_deadline
                hurried = hurried and remaining < self.total_s / 2
                attempt = Attempt(
                    leg, pod, request_id, None, error.kind, str(error), seconds, stale
                )
                return structs.replace(attempt, hurried=True) if hurried else attempt, None
            finally:
                if timed:
                    self.record.steps.end(leg, began, waits=True)
            seconds = time.monotonic() - start
            if answer.status in DONE:
                attempt = Attempt(leg, pod, request_id, answer.status, None, "", seconds, stale)
            else:
                attempt = _describe(leg, pod, request_id, answer, seconds=seconds, stale=stale)
            return attempt, answer

    def describe_failure(self, pod: Pod, failed: PostFailed, began: float) -> Attempt:
        """Return an attempt that has failed before its leg was sent.

        Args:
            pod: the pod.
            failed: why.
            began: when, on the monotonic clock.
        """
        seconds = time.monotonic() - began
        request_id = self.record.request_id
        message = str(failed)
        attempt = Attempt(self.leg, pod, request_id, None, failed.kind, message, seconds, 0)
        if self.record.trace is not None:
            self.record.trace.note_try(attempt)
        return attempt


def _describe(
    leg: Leg, pod: Pod, request_id: str, answer: EngineAnswer, *, seconds: float, stale: int
) -> Attempt:
    """Return an attempt to which an engine has answered that it has not carried the leg out."""
    status = answer.status
    said = read_error_message(answer.body)
    message = f"the {leg} engine answered {status}{f': {said}' if said else ''}"
    failure = FailureKind.STATUS if judge(status) is Speaks.FAILURE else None
    retry_after = read_retry_after(answer.headers)
    return Attempt(leg, pod, request_id, status, failure, message, seconds, stale, retry_after)


def number_ids(request_id: str) -> Iterator[str]:
    """Yield the id of a request, and then new ones that begin with it.

    Engines refuse or mix up an id that they have seen.
    """
    yield request_id
    for number in count(2):
        yield f"{request_id}-{number}"
