"""Asks each engine of an endpoints file which models it serves, before a request does."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import msgspec

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.engine_http.client import ClientLimits, HttpClient
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.tls import EngineTls, describe_failure
from pdrouter.engines.split import Leg

log = logging.getLogger(__name__)

_AT_ONCE = 32
_PAGE_BYTES = 1024 * 1024
_PATH = "/v1/models"
_LEGS = tuple(Role(leg) for leg in Leg)


class _Card(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Card] = []


@dataclass(slots=True)
class _Engine:
    """What is known of an address.

    Attributes:
        asked_at: when it was asked last.
        answers: whether it has answered.
    """

    asked_at: float
    answers: bool


class EngineCheck:
    """Asks the engines, each until it has answered once. What is odd is a warning, once.

    Whether an engine that has answered is still there, scrapes and requests find out.
    """

    def __init__(
        self,
        cache: PodCache,
        tls: EngineTls | None = None,
        *,
        look_s: float = 1.0,
        again_s: float = 5.0,
        wait_s: float = 5.0,
    ) -> None:
        """Set up; nobody is asked yet.

        Args:
            cache: the pods.
            tls: how engines are spoken to; None for plain text.
            look_s: seconds between two looks for engines that have not been asked.
            again_s: seconds until an engine that did not answer is asked again.
            wait_s: seconds that an engine has for its answer.
        """
        self._cache = cache
        self._tls = tls
        self._look_s = look_s
        self._again_s = again_s
        self._wait_s = wait_s
        self._engines: dict[str, _Engine] = {}

    def is_silent(self, pod: Pod) -> bool:
        """Return whether a pod was asked, and has never answered."""
        engine = self._engines.get(pod.address)
        return engine is not None and not engine.answers

    async def run(self) -> None:
        """Ask until cancelled."""
        slots = asyncio.Semaphore(_AT_ONCE)
        limits = ClientLimits(self._wait_s, self._wait_s, _PAGE_BYTES)
        with closing(HttpClient(limits, self._look_s, self._tls)) as client:

            async def ask(address: str, pods: Sequence[Pod]) -> None:
                async with slots:
                    await self._ask(client, address, pods)

            while True:
                await asyncio.gather(*(ask(*each) for each in self._find_due().items()))
                await asyncio.sleep(self._look_s)

    def _find_due(self) -> Mapping[str, list[Pod]]:
        """Return whom to ask, with the pods that are there, and forget those that are gone."""
        pods: dict[str, list[Pod]] = {}
        for pod in self._cache.view.pods:
            if pod.ready:
                pods.setdefault(pod.address, []).append(pod)
        self._engines = {
            address: engine for address, engine in self._engines.items() if address in pods
        }
        now = asyncio.get_running_loop().time()
        return {
            address: group
            for address, group in pods.items()
            if (engine := self._engines.get(address)) is None
            or (not engine.answers and now - engine.asked_at >= self._again_s)
        }

    async def _ask(self, client: HttpClient, address: str, pods: Sequence[Pod]) -> None:
        before = self._engines.get(address)
        try:
            names = await _fetch_names(client, address, self._wait_s)
        except PostFailed as failed:
            if before is None:
                models = sorted({pod.model for pod in pods})
                log.warning(
                    "engine %s does not answer: %s",
                    address,
                    _describe(failed),
                    extra={"fields": {"address": address, "models": models}},
                )
            self._engines[address] = _Engine(asyncio.get_running_loop().time(), answers=False)
            return
        self._engines[address] = _Engine(asyncio.get_running_loop().time(), answers=True)
        if before is not None:
            log.info("engine %s answers now", address, extra={"fields": {"address": address}})
        for pod in pods:
            if names and pod.model not in names:
                log.warning(
                    "engine %s serves %s, not %s: it will refuse requests, which ask for that name",
                    address,
                    ", ".join(names),
                    pod.model,
                    extra={"fields": {"address": address, "model": pod.model, "serves": names}},
                )


def describe_silence(view: ClusterView, is_silent: Callable[[Pod], bool]) -> list[str]:
    """Say of which models no engine answers, or none of those that a leg needs."""
    said = []
    for name in sorted(view.names):
        ready = [pod for pod in view.models[name].pods if pod.ready]
        answering = {pod.role for pod in ready if not is_silent(pod)}
        lacking = [role for role in _LEGS if role not in answering and _has(ready, role)]
        if not answering:
            said.append(f"model {name}: no engine answers")
        said += [f"model {name}: no {role} engine answers" for role in lacking if answering]
    return said


def _has(pods: Sequence[Pod], role: Role) -> bool:
    return any(pod.role is role for pod in pods)


def _describe(failed: PostFailed) -> str:
    if failed.kind is FailureKind.TIMEOUT:
        return "no answer in time"
    cause = failed.__cause__
    return describe_failure(cause) if isinstance(cause, OSError) else str(failed)


async def _fetch_names(client: HttpClient, address: str, wait_s: float) -> list[str]:
    """Return the models that an engine lists; none if it lists them to nobody, or otherwise.

    Raises:
        PostFailed: it does not answer.
    """
    try:
        answer = await client.request("GET", address, _PATH, {}, body=None, total_s=wait_s)
        return [card.id for card in msgspec.json.decode(answer.body, type=_Models).data]
    except PostFailed as failed:
        if failed.kind is FailureKind.TOO_LARGE:
            return []
        raise
    except msgspec.MsgspecError:
        return []
