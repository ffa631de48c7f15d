"""The replies that send a request on its way."""

from collections.abc import Mapping

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.extproc.codec import keep
from pdrouter.extproc.header_changes import UNCHANGED, HeaderChanges
from pdrouter.extproc.messages import BodyMode, Phase, PhaseReply, ReplaceBody
from pdrouter.extproc.modes import ask_for_rest
from pdrouter.openai.headers import (
    DESTINATION_ENDPOINT,
    MAX_RETRIES,
    MODEL,
    RANK,
    REQUEST_ID,
    ROUTING_STRATEGY,
    STRIPPED_HEADERS,
    TARGET_POD,
    find_rare_controls,
)
from pdrouter.serving.dispatched import Dispatched
from pdrouter.serving.pod_outcomes import SentLeg
from pdrouter.serving.trace import TRACEPARENT, TRACESTATE, RequestTrace

_REQUEST_BODY = Phase.REQUEST_BODY
_STRIPS = {
    mode: keep(
        PhaseReply(
            Phase.REQUEST_HEADERS,
            remove_headers=STRIPPED_HEADERS,
            mode_override=ask_for_rest(mode),
        )
    )
    for mode in (None, *BodyMode)
}


def strip(
    response_body: BodyMode | None,
    headers: Mapping[str, str],
    changes: HeaderChanges = UNCHANGED,
) -> PhaseReply:
    """Return the reply to the headers of a request, after which its body comes.

    Args:
        response_body: the mode of response bodies; None if it is not known.
        headers: the client's headers.
        changes: what else is changed.
    """
    usual, rare = _STRIPS[response_body], find_rare_controls(headers)
    if changes.removed:
        # Envoy removes first, and then sets.
        rare += tuple(name for name in changes.removed if name in headers)
    if not rare and not changes.added:
        return usual
    removed = (*usual.remove_headers, *rare)
    return structs.replace(usual, remove_headers=removed, set_headers=changes.added)


def forward(
    dispatched: Dispatched,
    sent: SentLeg | None,
    strategy: str | None,
    metadata: Mapping[str, Mapping[str, str]] | None,
    *,
    names_second: bool,
) -> PhaseReply:
    """Return the reply to the body of a request.

    Args:
        dispatched: how the request goes.
        sent: where it goes; None where Envoy chooses.
        strategy: name of the strategy.
        metadata: what Envoy is to keep of the request.
        names_second: whether Envoy goes by a list of pods.
    """
    headers = [*dispatched.headers.items(), (REQUEST_ID, dispatched.request_id)]
    if sent is None:
        headers.append((MODEL, dispatched.model))
    else:
        second = (sent.second or sent.pod) if names_second else None
        headers += name_pod(sent.pod, second, strategy)
        if sent.split:
            # Over any retry policy of Envoy's, where its mutation rules allow it: the handle in the
            # body is good for one request.
            headers.append((MAX_RETRIES, "0" if sent.second is None else "1"))
    body = None
    if not dispatched.body.unchanged:
        headers.append(("content-length", str(len(dispatched.body))))
        body = ReplaceBody(dispatched.body)
    return PhaseReply(
        _REQUEST_BODY,
        set_headers=tuple(headers),
        body=body,
        clear_route_cache=True,
        dynamic_metadata=metadata,
    )


def name_pod(pod: Pod, second: Pod | None, strategy: str | None) -> list[tuple[str, str]]:
    """Return the headers by which Envoy finds a pod.

    Where it goes by a list, that always has two: after the end of its list Envoy would try any pod
    of the cluster, of another model perhaps.
    """
    names = pod.address if second is None else f"{pod.address},{second.address}"
    headers = [
        (TARGET_POD, pod.address),
        (DESTINATION_ENDPOINT, names),
        (ROUTING_STRATEGY, strategy or ""),
    ]
    if pod.rank is not None:
        headers.append((RANK, str(pod.rank.number)))
    return headers


def join_trace(reply: PhaseReply, trace: RequestTrace, pod: Pod | None) -> PhaseReply:
    """Return the reply with which the last leg belongs to a trace."""
    header = (TRACEPARENT, trace.send_last(pod))
    removed = () if trace.joined else (TRACESTATE,)
    return structs.replace(
        reply,
        set_headers=(*reply.set_headers, header),
        remove_headers=(*reply.remove_headers, *removed),
    )
