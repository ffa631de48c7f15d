"""Models that sleep on a warm pod: a request has theirs woken, and is to come again."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from types import TracebackType
from uuid import uuid4

from pdrouter.cluster.pods import RANK_MARK, Inactive, Pod, format_address
from pdrouter.engine_http.failures import PostFailed
from pdrouter.openai.body import encode
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.drains import Drains
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.refusals import refuse_for_now

log = logging.getLogger(__name__)

_PORT, _PATH = 8080, "/v1/runtime/models/wake"
"""Where aibrix's runtime, beside the engines of a pod, takes the wish."""
_ANSWER_S = 120.0
_AGAIN_S = 10
"""Seconds after which a client may come again, and a model may be woken again."""
_AT_ONCE = 64


class Wakes:
    """Has sleeping models woken, each at most once at a time. One for the whole process.

    Use as an async context manager: at its end, what is under way is given up.
    """

    def __init__(
        self,
        client: EngineClient,
        clock: Callable[[], float] = time.monotonic,
        *,
        port: int = _PORT,
    ) -> None:
        """Begin with nothing.

        Args:
            client: sends the requests.
            clock: the time, in seconds.
            port: port of the runtime of each pod.
        """
        self._client = client
        self._port = port
        self._clock = clock
        self._tasks = Drains(_ANSWER_S, _AT_ONCE)
        self._rests: dict[str, float] = {}

    async def __aenter__(self) -> "Wakes":
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    @property
    def outstanding(self) -> int:
        """How many have not been answered."""
        return self._tasks.outstanding

    def turn_away(self, pod: Pod, model: str) -> RequestRejected:
        """Return the error for a request whose model is not active, and have it woken if it sleeps.

        Args:
            pod: where it is to be.
            model: its name.
        """
        if pod.inactive is Inactive.FAILED:
            return RequestRejected(503, "model_inactive", f"model {model!r} has failed to start")
        if pod.inactive is Inactive.SLEEPING and pod.ip:
            self._wake(pod, model)
        message = f"model {model!r} is {pod.inactive}; retry shortly"
        return refuse_for_now(503, "model_inactive", message, _AGAIN_S)

    def _wake(self, pod: Pod, model: str) -> None:
        now = self._clock()
        for uid in [uid for uid, until in self._rests.items() if until <= now]:
            del self._rests[uid]
        if pod.uid in self._rests or self.outstanding >= _AT_ONCE:
            return
        self._rests[pod.uid] = math.inf
        task = asyncio.create_task(self._ask(pod, model))
        task.add_done_callback(lambda _: self._rest(pod.uid))
        self._tasks.take(task)

    def _rest(self, uid: str) -> None:
        self._rests[uid] = self._clock() + _AGAIN_S

    async def _ask(self, pod: Pod, model: str) -> None:
        uid = pod.uid.partition(RANK_MARK)[0]
        members = {
            "model_name": model,
            "operation_id": f"gateway-wake/{uid}/{model}/{uuid4()}",
        }
        address = format_address(pod.ip, self._port)
        headers = {"content-type": "application/json"}
        body = Pieces((encode(members),))
        try:
            answer = await self._client.post(address, _PATH, headers, body, _ANSWER_S, plain=True)
        except PostFailed as failed:
            problem = str(failed)
        else:
            problem = "" if 200 <= answer.status < 300 else f"status {answer.status}"
        if problem:
            log.warning("model %s on pod %s cannot be woken: %s", model, pod.own_name, problem)
        else:
            log.info("model %s on pod %s is woken", model, pod.own_name)
