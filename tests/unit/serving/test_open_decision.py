"""While a prefill leg is tried here and there, one decode pod counts the request: its partner."""

import asyncio
from collections.abc import Sequence
from typing import Any

from exchanges import PARAMS, Bench, error_of, request_body, request_headers, response_headers
from factories import make_pod
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.messages import ImmediateReply, PhaseReply, Reply
from pdrouter.serving.record import RequestRecord, Retry
from pdrouter.settings.choices import FailurePolicy

DONE = EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")
HANG = "hang"


def make_rolesets(*shapes: tuple[int, int]) -> list[Pod]:
    """Rolesets `r0`, `r1`, ... of so many prefill and decode pods, each with its own address."""
    pods: list[Pod] = []
    for number, shape in enumerate(shapes):
        for role, count in zip((Role.PREFILL, Role.DECODE), shape, strict=True):
            for _ in range(count):
                name = f"r{number}-{role}-{len(pods)}"
                ip = f"10.0.0.{len(pods) + 1}"
                pods.append(make_pod(name, role, ip=ip, roleset=f"r{number}", model="m"))
    return pods


class Journey:
    """A request whose prefill leg meets one outcome after another."""

    def __init__(self, pods: Sequence[Pod], outcomes: Sequence[Any], **options: Any) -> None:
        """Set up.

        Args:
            pods: the pods.
            outcomes: a status, a kind of failure, an answer, or `HANG`, for each try.
            options: settings that differ.
        """
        self.pods = {pod.uid: pod for pod in pods}
        self.bench = Bench(pods, **options)
        self.outcomes = iter(outcomes)
        self.pairs: list[tuple[str, str]] = []
        self.hanging = asyncio.Event()
        self.bench.prefill.answer = self._answer

    def _answer(self) -> Any:
        loads = self.bench.ledger.loads
        ((prefill, one),) = loads[Leg.PREFILL].items()
        ((decode, other),) = loads[Leg.DECODE].items()
        assert one.requests == other.requests == 1
        self.pairs.append((prefill, decode))
        outcome = next(self.outcomes, DONE)
        if outcome == HANG:
            return self._hang()
        return EngineAnswer(outcome, {}, b"{}") if isinstance(outcome, int) else outcome

    async def _hang(self) -> None:
        self.hanging.set()
        await asyncio.Event().wait()

    async def run(self) -> Reply | None:
        """Send the request; its client leaves once a try hangs."""
        await self.bench.tell(request_headers())
        serving = asyncio.create_task(self.bench.tell(request_body()))
        leaving = asyncio.create_task(self.hanging.wait())
        await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if self.hanging.is_set():
            serving.cancel()
            await asyncio.wait([serving])
            return None
        return serving.result()[0]

    def close(self) -> RequestRecord:
        """End the stream: nothing is counted any more, and no pod is on trial."""
        record = self.bench.close()
        failures = self.bench.state.failures
        assert not any(each["on_trial"] for uid in self.pods for each in failures.describe(uid))
        return record


OUTCOMES = (500, 503, 302, 429, 404, 401, 400, 200, *FailureKind, HANG)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=3),
    st.lists(st.sampled_from(OUTCOMES), max_size=10),
    st.integers(0, 4),
    st.sampled_from(FailurePolicy),
    st.data(),
)
def test_whatever_comes_of_the_tries_nothing_stays_counted(
    shapes: list[tuple[int, int]],
    outcomes: list[Any],
    retries: int,
    policy: FailurePolicy,
    data: st.DataObject,
) -> None:
    async def serve() -> None:
        pods = make_rolesets(*shapes)
        journey = Journey(pods, outcomes, prefill_retries=retries, on_prefill_failure=policy)
        failures = journey.bench.state.failures
        for pod in pods:
            for _ in range(data.draw(st.integers(0, 3))):
                leg = Leg.PREFILL if pod.role is Role.PREFILL else Leg.DECODE
                failures.note_failure(pod.uid, leg, "connect", 0.0)
        reply = await journey.run()
        tried = [prefill for prefill, _ in journey.pairs]
        assert len(set(tried)) == len(tried)
        for prefill, decode in journey.pairs:
            assert journey.pods[prefill].pairing == journey.pods[decode].pairing
        decision = journey.bench.exchange.record.decision
        assert decision is not None
        if isinstance(reply, PhaseReply):
            # Only the pod that Envoy is told of has the request now.
            assert set(journey.bench.ledger.loads[Leg.DECODE]) == {decision.last.pod.uid}
            assert dict(reply.set_headers)["target-pod"] == decision.last.pod.address
        record = journey.close()
        assert len(record.attempts) == len(tried) - (reply is None)
        assert len(record.retries) == max(0, len(tried) - 1)

    asyncio.run(serve())


async def test_the_pod_of_the_last_pair_serves_what_no_prefill_pod_does() -> None:
    pods = make_rolesets((1, 1), (1, 1))
    options = {"prefill_retries": 2, "on_prefill_failure": FailurePolicy.AGGREGATE}
    journey = Journey(pods, [500, 503], **options)
    reply = await journey.run()
    assert isinstance(reply, PhaseReply)
    (first, _), (second, last) = journey.pairs
    assert first != second
    assert dict(reply.set_headers)["target-pod"] == journey.pods[last].address
    (told,) = await journey.bench.tell(response_headers())
    assert isinstance(told, PhaseReply)
    assert dict(told.set_headers)["target-pod"] == journey.pods[last].name
    record = journey.close()
    assert record.aggregated == "prefill-failed"
    assert record.retries == (Retry.OTHER_PAIR,)


async def test_a_decode_pod_that_goes_while_its_pair_is_tried_is_replaced() -> None:
    pods = make_rolesets((1, 2), (1, 2))
    journey = Journey(pods, [500], prefill_retries=2)
    answer = journey.bench.prefill.answer

    def answer_and_lose_the_decode_pod() -> Any:
        outcome = answer()
        if outcome is DONE:
            journey.bench.cache.replace(pod for pod in pods if pod.uid != journey.pairs[-1][1])
        return outcome

    journey.bench.prefill.answer = answer_and_lose_the_decode_pod
    await journey.run()
    decision = journey.bench.exchange.record.decision
    assert decision is not None
    holder, gone = (journey.pods[uid] for uid in journey.pairs[-1])
    assert decision.last.pod.pairing == holder.pairing
    assert decision.last.pod.uid != gone.uid
    assert set(journey.bench.ledger.loads[Leg.DECODE]) == {decision.last.pod.uid}
    journey.close()


async def test_the_client_is_told_that_there_were_too_many_retries() -> None:
    pods = make_rolesets((2, 1))
    options = {"retry_budget_share": 0.0, "retry_budget_per_second": 0.0}
    journey = Journey(pods, [500], prefill_retries=2, **options)
    reply = await journey.run()
    assert error_of(reply) == (502, "prefill_failed")
    assert isinstance(reply, ImmediateReply)
    assert b"after 1 attempt(s)" in reply.body
    assert b"no other pod was tried, since too many of the model's requests are" in reply.body
    assert journey.close().retries == (Retry.OVER_BUDGET,)
