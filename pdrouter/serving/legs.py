"""The prefill leg of a request: attempts on one pod after another, within one deadline."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import count

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.load.failures import FailureMemory, Leg
from pdrouter.load.ledger import Ledger
from pdrouter.openai.engine_errors import read_error_message
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.retry_after import read_retry_after
from pdrouter.openai.usage import Usage, read_usage
from pdrouter.serving.engine_client import EngineAnswer, FailureKind, PostFailed, PrefillClient
from pdrouter.serving.statuses import BUSY, Speaks, judge, rank

_FREE_REFUSALS = 4
"""Pods that may say that it is them, before the tries that they cost count as retries.

They answer at once, and a pod that is busy or lacks the adapter should not keep a request from one
that is not, and does not; but a wrong key must not be tried on every pod there is.
"""


class PrefillTarget(msgspec.Struct, frozen=True):
    """Where a prefill leg goes.

    Attributes:
        pod: the pod.
        tokens: prompt tokens that it has to compute, as estimated; for the ledger.
        body: request body, as its KV connector wants it.
    """

    pod: Pod
    tokens: int
    body: Pieces


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
        message: details of the failure, or the engine's own words, for the log.
        seconds: how long it took.
        stale_connections: how often a connection turned out to be closed by the engine.
        retry_after_s: seconds after which the engine wants to be asked again; None if it has not
            said so.
    """

    pod: Pod
    request_id: str
    status: int | None
    failure: FailureKind | None
    message: str
    seconds: float
    stale_connections: int
    retry_after_s: float | None = None

    @property
    def speaks(self) -> Speaks:
        """What it says: that the leg is done, or of what it speaks otherwise."""
        if self.failure is not None or self.status is None:
            return Speaks.FAILURE
        return judge(self.status)


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
    """The engine answered with a 4xx status, and no other pod says otherwise.

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
        failures: lets one attempt at a time go to a pod that has failed.
    """

    client: PrefillClient
    ledger: Ledger
    total_s: float
    retries: int
    failures: FailureMemory = field(default_factory=FailureMemory)

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
        refusals: list[EngineAnswer] = []
        target: PrefillTarget | None = plan.target
        while target is not None:
            tried.append(target.pod.uid)
            attempt, answer, usage = await self._attempt(plan, target, ids, deadline)
            on_attempt(attempt)
            if answer is not None:
                match attempt.speaks:
                    case Speaks.DONE:
                        return Prefilled(target.pod, attempt.request_id, answer, usage)
                    case Speaks.REQUEST:
                        raise PrefillRefused(answer)
                    case Speaks.POD:
                        refusals.append(answer)
            exhausted = time.monotonic() >= deadline or not self._may_go_on(tried, refusals)
            target = None if exhausted else plan.choose_other(tried)
        most_telling = _choose_refusal(refusals, failures=len(tried) - len(refusals))
        if most_telling is not None:
            raise PrefillRefused(most_telling)
        raise PrefillFailed(attempt, len(tried))

    def _may_go_on(self, tried: Sized, refusals: Sized) -> bool:
        """Return whether another pod may be tried."""
        free = min(len(refusals), _FREE_REFUSALS) if self.retries else 0
        return len(tried) - free <= self.retries

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
        trial = self.failures.start_trial(pod.uid, Leg.PREFILL)
        with trial, self.ledger.start_prefill(pod.uid, target.tokens) as scope:
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
        status = retry_after = None
        if answer is not None:
            status = answer.status
            if judge(status) is not Speaks.DONE:
                message = _describe(answer)
                retry_after = read_retry_after(answer.headers)
            if judge(status) is Speaks.FAILURE:
                failure = FailureKind.STATUS
        seconds = time.monotonic() - start
        attempt = PrefillAttempt(
            pod, request_id, status, failure, message, seconds, stale, retry_after
        )
        return attempt, answer, usage


def _describe(answer: EngineAnswer) -> str:
    said = read_error_message(answer.body)
    return f"the prefill engine answered {answer.status}{f': {said}' if said else ''}"


def _choose_refusal(refusals: Sequence[EngineAnswer], *, failures: int) -> EngineAnswer | None:
    """Return which pod's refusal the client gets; None if it may not be the truth.

    If other pods have failed, they might have had what these lack: to be told that the model does
    not exist would send the client away for good.
    """
    told = [answer for answer in refusals if not failures or answer.status in BUSY]
    return max(told, key=lambda answer: rank(answer.status), default=None)


def _number_ids(request_id: str) -> Iterator[str]:
    yield request_id
    for number in count(2):
        yield f"{request_id}-{number}"
