"""The prefill leg of a request: attempts on one pod after another, within one deadline."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import msgspec

from pdrouter.cluster.load import Ledger
from pdrouter.cluster.pods import Pod
from pdrouter.openai.usage import Usage, read_usage
from pdrouter.prefill.client import EngineAnswer, FailureKind, PostFailed, PrefillClient


class PrefillTarget(msgspec.Struct, frozen=True):
    """Where a prefill leg goes.

    Attributes:
        pod: the pod.
        tokens: prompt tokens that it has to compute, as estimated; for the ledger.
        body: request body, as its KV connector wants it.
    """

    pod: Pod
    tokens: int
    body: bytes


class PrefillPlan(msgspec.Struct, frozen=True):
    """What is to be prefilled, and where.

    Attributes:
        path: path with query string.
        headers: request headers, without `x-request-id`.
        target: where to try first.
        choose_other: gives the target of another attempt, after the pods with the given UIDs
            failed; None if there is none.
    """

    path: str
    headers: Mapping[str, str]
    target: PrefillTarget
    choose_other: Callable[[Collection[str]], PrefillTarget | None]


class PrefillAttempt(msgspec.Struct, frozen=True):
    """One try on one pod.

    Attributes:
        pod: the pod.
        request_id: `x-request-id` of its last POST.
        status: HTTP status; None without an answer.
        failure: what went wrong; None if nothing did, or if the engine refused the request.
        message: details of the failure, for the log.
        seconds: how long it took.
        stale_connections: how often a connection turned out to be closed by the engine.
    """

    pod: Pod
    request_id: str
    status: int | None
    failure: FailureKind | None
    message: str
    seconds: float
    stale_connections: int


class Prefilled(msgspec.Struct, frozen=True):
    """The outcome of a prefill leg that an engine has carried out.

    Attributes:
        pod: the engine's pod.
        request_id: `x-request-id` of its request.
        answer: its answer.
        usage: what the answer says of the prompt's tokens; None if nothing.
    """

    pod: Pod
    request_id: str
    answer: EngineAnswer
    usage: Usage | None


class PrefillRefused(Exception):
    """The engine answered with a 4xx status: another pod would say the same.

    Attributes:
        answer: the engine's answer, for the client.
    """

    def __init__(self, answer: EngineAnswer) -> None:
        super().__init__(f"the prefill engine answered {answer.status}")
        self.answer = answer


class PrefillFailed(Exception):
    """No pod carried out the prefill leg.

    Attributes:
        last: the last attempt.
        attempts: how many there were.
    """

    def __init__(self, last: PrefillAttempt, attempts: int) -> None:
        super().__init__(last.message)
        self.last = last
        self.attempts = attempts


@dataclass(frozen=True, slots=True)
class PrefillLeg:
    """Runs prefill legs.

    Attributes:
        client: sends the requests.
        ledger: counts each attempt on its pod while it lasts.
        total_s: seconds for all attempts together.
        retries: how many further pods are tried after a failure.
    """

    client: PrefillClient
    ledger: Ledger
    total_s: float
    retries: int

    async def run(
        self, plan: PrefillPlan, request_id: str, on_attempt: Callable[[PrefillAttempt], None]
    ) -> Prefilled:
        """Carry out a prefill leg. Cancelling closes the connection: the engine stops its work.

        Args:
            plan: what to do.
            request_id: id of the request. The first POST carries it; every further one a new id
                that begins with it, because engines refuse or mix up an id that they have seen.
            on_attempt: told of each attempt when it has ended, but not of one that is cancelled.

        Raises:
            PrefillRefused: the engine refused the request.
            PrefillFailed: all attempts failed.
        """
        deadline = time.monotonic() + self.total_s
        ids = _number_ids(request_id)
        tried: list[str] = []
        target: PrefillTarget | None = plan.target
        while target is not None:
            tried.append(target.pod.uid)
            attempt, answer, usage = await self._attempt(plan, target, ids, deadline)
            on_attempt(attempt)
            if answer is not None and attempt.failure is None:
                if answer.status >= 400:
                    raise PrefillRefused(answer)
                return Prefilled(target.pod, attempt.request_id, answer, usage)
            exhausted = len(tried) > self.retries or time.monotonic() >= deadline
            target = None if exhausted else plan.choose_other(tried)
        raise PrefillFailed(attempt, len(tried))

    async def _attempt(
        self, plan: PrefillPlan, target: PrefillTarget, ids: Iterator[str], deadline: float
    ) -> tuple[PrefillAttempt, EngineAnswer | None, Usage | None]:
        start = time.monotonic()
        stale = 0
        answer: EngineAnswer | None = None
        usage: Usage | None = None
        failure: FailureKind | None = None
        message = ""
        pod = target.pod
        with self.ledger.start_prefill(pod.uid, target.tokens) as scope:
            while True:
                request_id = next(ids)
                headers = {**plan.headers, "x-request-id": request_id}
                remaining = max(0.001, deadline - time.monotonic())
                try:
                    answer = await self.client.post(
                        pod.address, plan.path, headers, target.body, remaining
                    )
                except PostFailed as error:
                    if error.stale and not stale:
                        stale += 1
                        continue
                    failure, message = error.kind, str(error)
                break
            if answer is not None and answer.status < 300:
                usage = read_usage(answer.body)
                scope.complete(None if usage is None else usage.count_computed())
        if answer is not None and not _is_final(answer.status):
            failure = FailureKind.STATUS
            message = f"the prefill engine answered {answer.status}"
        seconds = time.monotonic() - start
        status = None if answer is None else answer.status
        attempt = PrefillAttempt(pod, request_id, status, failure, message, seconds, stale)
        return attempt, answer, usage


def _is_final(status: int) -> bool:
    """Return whether another pod would not answer differently."""
    return 200 <= status < 300 or 400 <= status < 500


def _number_ids(request_id: str) -> Iterator[str]:
    yield request_id
    for number in count(2):
        yield f"{request_id}-{number}"
