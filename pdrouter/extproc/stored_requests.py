"""Sends requests about answers that engines keep on, at their headers: they need no body."""

from collections.abc import Mapping

from msgspec import structs

from pdrouter.extproc.exchange_policy import ExchangePolicy
from pdrouter.extproc.forwarding import join_trace, name_pod
from pdrouter.extproc.messages import PhaseReply
from pdrouter.openai.headers import REQUEST_ID
from pdrouter.serving.answers import RoutedRequest
from pdrouter.serving.call import Call
from pdrouter.serving.selectors import read_selector
from pdrouter.serving.way import Dispatcher


async def forward_stored(
    reply: PhaseReply,
    response_id: str,
    headers: Mapping[str, str],
    call: Call,
    dispatcher: Dispatcher,
    *,
    policy: ExchangePolicy,
) -> PhaseReply:
    """Return the reply to the headers of a request about a kept answer: it is on its way then.

    Args:
        reply: the reply that removes what the client may not say.
        response_id: id of the answer.
        headers: the client's headers.
        call: the request; its record gets the decision.
        dispatcher: knows who keeps the answer.
        policy: what the operator decided.

    Raises:
        RequestRejected: nobody keeps it, it cannot be asked for now, or a limit has no room.
    """
    record = call.record
    holders, strategy = dispatcher.chooser.holders, dispatcher.policy.default_strategy
    pod = holders.dispatch(response_id, record, strategy, read_selector(headers))
    await _admit(call, dispatcher)
    # No other pod will do.
    named = name_pod(pod, pod if dispatcher.policy.names_second else None, record.strategy)
    metadata = None
    if policy.observation.access_log:
        metadata = RoutedRequest.describe(record, generates=False).to_metadata()
    sent = structs.replace(
        reply,
        set_headers=(*reply.set_headers, (REQUEST_ID, record.request_id), *named),
        clear_route_cache=True,
        dynamic_metadata=metadata,
    )
    record.forwarded = True
    return sent if record.trace is None else join_trace(sent, record.trace, pod)


async def _admit(call: Call, dispatcher: Dispatcher) -> None:
    """Let the request in, as far as limits have room; it generates no tokens."""
    pods, gate = dispatcher.chooser.models.find(call.record.model), dispatcher.gate
    if gate.guards(call.user, pods):
        call.admission = await gate.admit(
            call.user, pods, call.record, tokens=(0, 0), per_second=None
        )
