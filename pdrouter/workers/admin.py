"""The common HTTP port of the workers: asks each of them, and puts their answers together."""

import asyncio
from collections import Counter as Counts
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from pdrouter import __version__
from pdrouter.admin.http_port import HttpPort, answer_json, answer_metrics
from pdrouter.telemetry.page import render_page
from pdrouter.workers.metrics_page import Page, add_up, describe_workers, parse_page
from pdrouter.workers.process import Answer, NoAnswer, WorkerProcess

_Answers = Sequence[tuple[WorkerProcess, Answer]]


class CommonAdmin(HttpPort):
    """Serves the pages of all workers as if they were one process."""

    def __init__(self, kept_decisions: int, is_draining: Callable[[], bool]) -> None:
        """Begin without workers.

        Args:
            kept_decisions: how many decisions `/debug/decisions` shows.
            is_draining: tells whether the workers are about to end.
        """
        super().__init__(
            {
                "/healthz": self._show_health,
                "/readyz": self._show_readiness,
                "/metrics": self._show_metrics,
                "/v1/models": self._show_models,
                "/debug/state": self._show_state,
                "/debug/decisions": self._show_decisions,
            }
        )
        self._kept_decisions = kept_decisions
        self._is_draining = is_draining
        self._serving: dict[int, WorkerProcess] = {}
        self._restarts: Counts[int] = Counts()
        self._last: dict[int, Page] = {}
        self._past: Page = {}
        # Of two that scrape at once, the slower one would set counters back.
        self._scraping = asyncio.Lock()

    def add(self, worker: WorkerProcess) -> None:
        """Note that a worker serves."""
        self._serving[worker.number] = worker
        self._restarts.setdefault(worker.number, -1)
        self._restarts[worker.number] += 1

    def remove(self, worker: WorkerProcess) -> None:
        """Note that a worker has ended. What it counted up to the last scrape stays."""
        if self._serving.get(worker.number) is worker:
            del self._serving[worker.number]
        if (last := self._last.pop(worker.number, None)) is not None:
            self._past = add_up((), (self._past, last))

    async def _ask(self, path: str) -> _Answers:
        """Return the answers of the workers that give one, by their numbers."""
        workers = [worker for _, worker in sorted(self._serving.items())]
        answers = await asyncio.gather(
            *(worker.get(path) for worker in workers), return_exceptions=True
        )
        found = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, Answer):
                found.append((worker, answer))
            elif not isinstance(answer, NoAnswer):
                raise answer
        return found

    async def _show_health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _show_readiness(self, request: web.Request) -> web.Response:
        """Answer for all: Envoy finds out by itself which of the ports serve."""
        del request
        if self._is_draining():
            return web.Response(status=503, text="draining\n")
        answers = [answer for _, answer in await self._ask("/readyz")]
        for answer in answers:
            if answer.status == 200:
                return web.Response(body=answer.body, content_type="text/plain")
        reason = answers[0].body if answers else b"no worker answers\n"
        return web.Response(status=503, body=reason, content_type="text/plain")

    async def _show_metrics(self, request: web.Request) -> web.Response:
        del request
        async with self._scraping:
            answers = await self._ask("/metrics")
            pages = await asyncio.to_thread(
                lambda: [parse_page(answer.body.decode()) for _, answer in answers]
            )
            current: dict[int, Page] = {}
            for (worker, _), page in zip(answers, pages, strict=True):
                # One that has ended in the meantime has left what it had counted before.
                if self._serving.get(worker.number) is worker:
                    current[worker.number] = page
            self._last |= current
            silent = [page for number, page in self._last.items() if number not in current]
            now, past = tuple(current.values()), (self._past, *silent)
            own = describe_workers(self._restarts, len(self._serving))
            body = await asyncio.to_thread(lambda: render_page((*add_up(now, past).values(), *own)))
        return answer_metrics(body)

    async def _show_models(self, request: web.Request) -> web.Response:
        del request
        answers = await self._ask("/v1/models")
        if not answers:
            return web.Response(status=503, text="no worker answers\n")
        return answer_json(answers[0][1].body)

    async def _show_state(self, request: web.Request) -> web.Response:
        del request
        workers = [
            {
                "worker": worker.number,
                "pid": worker.pid,
                "restarts": self._restarts[worker.number],
                "state": msgspec.Raw(answer.body),
            }
            for worker, answer in await self._ask("/debug/state")
        ]
        state = {"version": __version__, "draining": self._is_draining(), "workers": workers}
        return answer_json(msgspec.json.encode(state))

    async def _show_decisions(self, request: web.Request) -> web.Response:
        # Any of the workers may have had the request that is asked for.
        query = f"?{request.rel_url.raw_query_string}" if request.query_string else ""
        decisions: list[dict[str, Any]] = [
            {"worker": worker.number, **decision}
            for worker, answer in await self._ask(f"/debug/decisions{query}")
            for decision in msgspec.json.decode(answer.body)["decisions"]
        ]
        decisions.sort(key=lambda decision: str(decision["time"]), reverse=True)
        return answer_json(msgspec.json.encode({"decisions": decisions[: self._kept_decisions]}))
