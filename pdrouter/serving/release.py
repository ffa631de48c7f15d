"""Has the blocks freed that no decode engine will fetch, before the end of their lease does.

To free blocks that an engine is reading would let it read another prompt's in their place. So it
is done only where no decode engine can have got the handle, which is certain in two cases:

* The router has not sent it on: it was refused as too large or too late, the request is served
  whole after all, or it has ended in between.
* Envoy says that it has made no attempt to send the request, or a single one, whose connection was
  never there. Before a further attempt there was another, of which nothing is known.

In all others a transfer may have begun, and what has begun is drained: when a client leaves while
Envoy sends, when a connection breaks, and when an engine answers with an error. Such an engine has
the blocks freed by itself if it does not need them; whatever goes wrong with that, the lease ends.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Release
from pdrouter.load.failures import FailureMemory
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.engine_client import address_rank
from pdrouter.serving.leg_outcome import LegAnswer

log = logging.getLogger(__name__)

_AT_ONCE = 8
_MOST = 256
"""Releases that are under way or wait for their turn; further ones are left to the lease."""
_SMALL = 16 * 1024
"""Bytes of an answer that is kept as it is, until it is certain who has its handle. Of larger ones
the handle is kept: the rest may be logarithmic probabilities of a whole prompt."""
_LARGEST = 1024 * 1024
"""Bytes of the largest request for a release that is kept."""
_TRIES = 2
_LAST_S = 2.0
"""Seconds that releases have at most once the router ends."""
_REFUSED = (400, 404)


class ReleaseOutcome(StrEnum):
    """What came of a release."""

    ASKED = "asked"
    """A decode engine has refused the request, as it should: from then on it is its business."""
    UNEXPECTED = "unexpected"
    """It has answered something else: that the key is wrong, or that it is away."""
    FAILED = "failed"
    """No decode engine has answered in time."""
    UNSUPPORTED = "unsupported"
    """The wire has no way, or the answer no handle that an engine could be told of."""
    NO_POD = "no-pod"
    """There was no decode pod to ask, or the blocks' own pod has gone."""
    DROPPED = "dropped"
    """Too many were under way, or the router has ended."""


class ReleaseObserver(Protocol):
    """Is told of releases. Must not raise."""

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        """A release has ended."""


class Posts(Protocol):
    """Sends requests to engines."""

    async def post(
        self, address: str, path: str, headers: Mapping[str, str], body: Pieces, total_s: float
    ) -> EngineAnswer:
        """Send a request and read the whole answer.

        Raises:
            PostFailed: there is none.
        """


@dataclass(frozen=True, slots=True)
class ReleaseRules:
    """What an operator decides about releases.

    Attributes:
        enabled: whether there are any.
        timeout_s: seconds for one, from the moment at which nobody will fetch the blocks.
        headers: names of the client's headers that engines get, its key among them.
    """

    enabled: bool
    timeout_s: float
    headers: tuple[str, ...]


class HeldHandle(msgspec.Struct, eq=False):
    """The handle of one request, until it is certain who has it.

    Attributes:
        answer: the answer with the handle.
        last: the pod that was chosen for the last leg.
        model: name by which the view has the model or adapter.
        headers: the client's headers.
        start: begins its release; None once that is done.
        written: the request for its release, where the answer is too large to be kept: its body is
            empty then.
        unreachable: whether the pod of the last leg could not be connected.
    """

    answer: LegAnswer
    last: Pod
    model: str
    headers: Mapping[str, str]
    start: "Callable[[HeldHandle], None] | None"
    written: Release | None = None
    unreachable: bool = False

    def release(self, *, unreachable: bool = False) -> None:
        """Have the blocks freed, in the background. Further calls change nothing.

        Args:
            unreachable: whether the pod of the last leg could not be connected.
        """
        self.unreachable = unreachable
        start, self.start = self.start, None
        if start is not None:
            start(self)


class Releases:
    """Carries out releases, a few at once. One for the whole process.

    Use as an async context manager: at its end what is under way has a last moment.
    """

    def __init__(
        self,
        client: Posts,
        cache: PodCache,
        failures: FailureMemory,
        splits: Splits,
        *,
        observer: ReleaseObserver,
        rules: ReleaseRules,
    ) -> None:
        """Set up.

        Args:
            client: sends the requests.
            cache: the pods.
            failures: knows which pods to ask last.
            splits: how an engine is asked.
            observer: is told what comes of it.
            rules: what the operator decided.
        """
        self._client = client
        self._cache = cache
        self._failures = failures
        self._splits = splits
        self._observer = observer
        self._rules = rules
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False

    async def __aenter__(self) -> "Releases":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=min(self._rules.timeout_s, _LAST_S))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def outstanding(self) -> int:
        """Releases that have not ended."""
        return len(self._tasks)

    def hold(
        self, answer: LegAnswer, last: Pod, model: str, headers: Mapping[str, str]
    ) -> HeldHandle | None:
        """Return what is to be told who has a handle; None if nobody wants to know.

        Args:
            answer: the answer with the handle.
            last: the pod that was chosen for the last leg.
            model: name by which the view has the model or adapter.
            headers: the client's headers.
        """
        if not self._rules.enabled:
            return None
        if len(answer.body) <= _SMALL:
            return HeldHandle(answer, last, model, headers, self._start)
        written = self._write(answer)
        if written is None or len(written.body) > _LARGEST:
            return None
        answer = msgspec.structs.replace(answer, body=b"", members=None)
        return HeldHandle(answer, last, model, headers, self._start, written)

    def _start(self, handle: HeldHandle) -> None:
        """Begin a release, unless too many are under way. Raises nothing and waits for nobody."""
        if self._ending or len(self._tasks) >= _MOST:
            self._end(handle, ReleaseOutcome.DROPPED)
            return
        task = asyncio.create_task(self._run(handle))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, handle: HeldHandle) -> None:
        outcome = ReleaseOutcome.DROPPED
        try:
            async with asyncio.timeout(self._rules.timeout_s), self._slots:
                outcome = await self._carry_out(handle)
        except TimeoutError:
            outcome = ReleaseOutcome.FAILED
        except Exception:  # Nobody waits for it who could be told.
            log.exception("a release has failed", extra=_describe(handle))
            outcome = ReleaseOutcome.FAILED
        finally:
            self._end(handle, outcome)

    async def _carry_out(self, handle: HeldHandle) -> ReleaseOutcome:
        release = handle.written or self._write(handle.answer)
        if release is None:
            return ReleaseOutcome.UNSUPPORTED
        outcome = ReleaseOutcome.NO_POD
        for pod in self._list_pods(handle):
            try:
                return await self._ask(pod, release, handle)
            except PostFailed as failed:
                outcome = ReleaseOutcome.FAILED
                if failed.kind is not FailureKind.CONNECT:
                    break  # It may have been heard, and must not be said twice.
        return outcome

    def _write(self, answer: LegAnswer) -> Release | None:
        holder = answer.pod
        return self._splits.find(holder.engine, holder.kv_connector).release(answer)

    async def _ask(self, pod: Pod, release: Release, handle: HeldHandle) -> ReleaseOutcome:
        known = handle.headers
        headers = {name: known[name] for name in self._rules.headers if name in known}
        headers |= address_rank(pod)
        headers["content-type"] = "application/json"
        headers["x-request-id"] = f"{handle.answer.request_id}-release"
        # It is rare: a connection that was kept would be closed when the next one needs it.
        headers["connection"] = "close"
        answer = await self._client.post(
            pod.address, release.path, headers, release.body, self._rules.timeout_s
        )
        if answer.status in _REFUSED:
            return ReleaseOutcome.ASKED
        if answer.status < 400:
            message = "an engine has carried out what was to be refused: set PDROUTER_RELEASE=off"
            log.warning(message, extra=_describe(handle, by=pod.address, status=answer.status))
        return ReleaseOutcome.UNEXPECTED

    def _list_pods(self, handle: HeldHandle) -> Sequence[Pod]:
        """Return the decode pods to ask, one after the other."""
        uid, last = handle.answer.pod.uid, handle.last
        pods = self._cache.view.models.get(handle.model)
        # As the newest view has it: what is known of revisions may have changed.
        holder = next((pod for pod in pods.pods if pod.uid == uid), None) if pods else None
        if pods is None or holder is None:
            return ()
        partners = pods.decode.get(holder.pairing, ())
        able = [pod for pod in partners if not (handle.unreachable and pod.uid == last.uid)]
        able.sort(key=lambda pod: (self._failures.is_left_out(pod.uid), pod.uid != last.uid))
        return able[:_TRIES]

    def _end(self, handle: HeldHandle, outcome: ReleaseOutcome) -> None:
        self._observer.release_ended(outcome)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("blocks that nobody fetches", extra=_describe(handle, outcome=outcome))


def _describe(handle: HeldHandle, **more: object) -> Mapping[str, Mapping[str, object]]:
    answer = handle.answer
    names = {"request_id": answer.request_id, "model": handle.model, "holder": answer.pod.name}
    return {"fields": {**names, **more}}
