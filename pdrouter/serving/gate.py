"""Lets requests in, as far as their users and models have room."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any

from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.failures import FailureKind
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.refusals import refuse_limits_unknown, refuse_over_limit
from pdrouter.serving.steps import Step
from pdrouter.users.counters import Counters, CountersUnavailable, Demand, Measure, Taken, Verdict
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.permissions import find_full_name
from pdrouter.users.quotas import limit_rate, list_demands
from pdrouter.users.user import User

_PAUSES_S = (0.01, 0.05)
"""Who sends one request after another has seen the end of the last one before the router has."""
_PATIENCE_S = 1.0
"""Seconds for what is still to be counted when the process ends."""


class Gate:
    """Lets requests in. One for the whole process.

    Use as an async context manager: at its end, what is still to be counted has a moment.

    Attributes:
        failures: what could not be counted, by operation: take, correct, release, give-back, and
            find, of users of elsewhere.
    """

    def __init__(
        self,
        counters: Counters,
        keys: KeysFile,
        *,
        open_on_failure: bool = True,
        merges_namespaces: bool = False,
    ) -> None:
        """Set up.

        Args:
            counters: what counts.
            keys: knows the limits.
            open_on_failure: whether requests pass that cannot be counted.
            merges_namespaces: whether models of one name are one model, in all namespaces together.
        """
        self.failures: Counter[str] = Counter()
        self._counters = counters
        self._keys = keys
        self._open_on_failure = open_on_failure
        self._merges_namespaces = merges_namespaces
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Gate":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_PATIENCE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def guards(self, user: User | None, pods: ModelPods) -> bool:
        """Return whether anything may limit what a user asks of these pods.

        Most routers have no limits: what is free should cost nothing.
        """
        return user is not None or pods.config is not None or bool(self._keys.roster.model_limits)

    async def admit(
        self,
        user: User | None,
        pods: ModelPods,
        record: RequestRecord,
        *,
        tokens: tuple[int, int],
        per_second: int | None,
    ) -> "Admission | None":
        """Let a request in, and count it from now on.

        Args:
            user: who asks.
            pods: the pods of its model.
            record: gets what is left of the limits, and what stood in the way.
            tokens: tokens of the prompt, and those that the answer is expected to have.
            per_second: how many requests of the model may pass in a second, as its profile says;
                None for any number.

        Returns:
            What is to be ended with the request; None if nothing limits it.

        Raises:
            RequestRejected: there is no room.
        """
        roster = self._keys.roster
        by_model = roster.model_limits or (user is not None and user.model_limits)
        if user is None and not by_model and per_second is None:
            return None
        # To look at all pods for it takes longer than all the rest.
        full_name = find_full_name(pods) if by_model or per_second is not None else ""
        name, unique = pods.model, full_name
        if self._merges_namespaces:
            name, unique = unique, name
        names = (record.model, name, unique)
        demands = list_demands(user, roster, names, *tokens)
        if per_second is not None:
            demands.append(limit_rate(unique, pods.model, per_second))
        if not demands:
            return None
        with Step(record.steps, "limits", waits=True):
            verdict = await self._take(demands, record.request_id)
        if verdict is None:
            return None
        record.standings = verdict.standings
        if verdict.taken is None:
            record.refused_by = verdict.refused
            raise refuse_over_limit(verdict)
        record.reserved = verdict.taken.select_tokens()
        if record.reserved is not None:
            record.reserved_prompt = tokens[0]
        return Admission(self, verdict.taken)

    async def _take(self, demands: Sequence[Demand], holder: str) -> Verdict | None:
        """Take what a request needs; None if it passes uncounted.

        Raises:
            RequestRejected: it cannot be counted, and must be.
        """
        hopeless = next((each for each in demands if each.amount > each.quota.limit), None)
        if hopeless is not None:
            return Verdict((), None, hopeless)
        try:
            verdict = await self._counters.take(demands, holder)
            for pause_s in _PAUSES_S:
                refused = verdict.refused
                if refused is None or refused.quota.measure is not Measure.CONCURRENT:
                    break
                await asyncio.sleep(pause_s)
                verdict = await self._counters.take(demands, holder)
        except CountersUnavailable as error:
            self.failures["take"] += 1
            if self._open_on_failure:
                return None
            raise refuse_limits_unknown() from error
        return verdict

    def settle(self, report: AnswerReport) -> None:
        """Count the tokens that an answer says, in place of those that were reserved for it.

        One that does not say them has had its prompt's, and as many as it has events, at the least.
        """
        taken, usage = report.request.reserved, report.usage
        seen = report.request.reserved_prompt + report.events
        if taken is None or not 0 < report.status < 400:
            return
        if usage is not None:
            self.correct(taken, usage.prompt_tokens + (usage.output_tokens or 0))
        elif report.events and seen > max(demand.amount for demand in taken.demands):
            self.correct(taken, seen)

    def correct(self, taken: Taken, tokens: int) -> None:
        """Count so many tokens in place of those that were reserved."""
        self._start("correct", self._counters.correct(taken, tokens))

    def release(self, taken: Taken) -> None:
        """Count no more what counts while it lasts."""
        self._start("release", self._counters.release(taken))

    def give_back(self, taken: Taken) -> None:
        """Undo what was taken."""
        self._start("give-back", self._counters.give_back(taken))

    def _start(self, operation: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._carry_out(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, operation: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CountersUnavailable:
            self.failures[operation] += 1


class Admission:
    """What a request has taken of its limits, until it ends."""

    __slots__ = ("_gate", "_taken")

    def __init__(self, gate: Gate, taken: Taken) -> None:
        self._gate = gate
        self._taken: Taken | None = taken

    def end(self, record: RequestRecord) -> None:
        """Give back what the request has not used. Further calls change nothing."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        if not has_reached_engine(record):
            self._gate.give_back(taken)
            return
        if taken.select(Measure.CONCURRENT).demands:
            self._gate.release(taken)
        if _has_failed(record) and taken.select(Measure.TOKENS).demands:
            self._gate.correct(taken, 0)


def has_reached_engine(record: RequestRecord) -> bool:
    """Return whether an engine may have got anything of a request that has ended."""
    if any(attempt.failure is not FailureKind.CONNECT for attempt in record.attempts):
        return True
    if record.forwarded:
        return not record.unseen
    # A client that leaves ends a leg that is on its way: of that there is no word.
    decision = record.decision
    return (
        record.outcome is None and decision is not None and bool(decision.side or decision.encode)
    )


def _has_failed(record: RequestRecord) -> bool:
    """Return whether a client got an error in place of an answer, from whoever may have known."""
    return (
        record.outcome in (Outcome.ENGINE_ERROR, Outcome.REJECTED, Outcome.FAILED)
        and (record.status or 500) >= 400
    )
