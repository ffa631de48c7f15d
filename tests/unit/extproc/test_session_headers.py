"""What a client is told of the pod that its session has."""

from typing import Any

import pytest
from exchanges import DECODE, PREFILL, Bench, request_body, request_headers, response_headers

from pdrouter.cluster.pods import Pod, Role
from pdrouter.extproc.messages import PhaseReply
from pdrouter.openai.sessions import write_session_id
from pdrouter.routing.session_affinity import SessionOutcome
from pdrouter.settings.choices import SessionAffinity

SECOND = Pod.create(uid="e", name="decode-1", ip="10.0.0.3", port=8000, model="m", role=Role.DECODE)
SOFT: dict[str, Any] = {"session_affinity": SessionAffinity.SOFT}


async def ask(
    *, strategy: str = "pd", session: str | None = "s", **settings: Any
) -> tuple[str | None, str | None, SessionOutcome | None]:
    """Return what the answer says of the pod, what would name the chosen one, and the outcome."""
    bench = Bench((PREFILL, DECODE, SECOND), **settings)
    named = {} if session is None else {"x-session-id": session}
    _, sent, answered = await bench.tell(
        request_headers(extra={"routing-strategy": strategy, **named}),
        request_body(),
        response_headers(),
    )
    assert isinstance(sent, PhaseReply)
    assert isinstance(answered, PhaseReply)
    pod = dict(sent.set_headers)["target-pod"]
    decision = bench.close().decision
    assert decision is not None
    return dict(answered.set_headers).get("x-session-id"), write_session_id(pod), decision.session


@pytest.mark.parametrize("strategy", ["pd", "least-request", "session-affinity"])
async def test_the_answer_names_the_last_pod_in_a_way_that_leads_there_again(strategy: str) -> None:
    said, chosen, outcome = await ask(strategy=strategy, **SOFT)
    assert (said, outcome) == (chosen, SessionOutcome.KEPT)
    for pod in (DECODE, SECOND):
        named = write_session_id(pod.address)
        assert await ask(strategy=strategy, session=named, **SOFT) == (
            named,
            named,
            SessionOutcome.KEPT,
        )


async def test_a_client_without_a_session_gets_one() -> None:
    said, chosen, outcome = await ask(session=None, strategy="session-affinity")
    assert (said, outcome) == (chosen, SessionOutcome.NONE)


async def test_where_sessions_do_not_count_nothing_is_said() -> None:
    said, _, outcome = await ask()
    assert (said, outcome) == (None, None)


async def test_clients_that_may_not_know_pods_are_not_told() -> None:
    said, _, outcome = await ask(expose_pods=False, **SOFT)
    assert (said, outcome) == (None, SessionOutcome.KEPT)


async def test_an_error_before_the_request_was_sent_names_no_pod() -> None:
    bench = Bench((PREFILL, DECODE), **SOFT)
    bench.prefill.answer = lambda: None
    reply = await bench.exchange.handle(request_headers(extra={"x-session-id": "s"}))
    assert isinstance(reply, PhaseReply)
    refused = await bench.exchange.handle(request_body())
    assert "x-session-id" not in dict(getattr(refused, "headers", ()))
    bench.close()
