"""The response headers that tell a client what was done for it."""

import time

import msgspec

from pdrouter.extproc.messages import Headers
from pdrouter.extproc.request_ids import pair_ids
from pdrouter.openai.headers import (
    CHOSEN_PROFILE,
    DECISION,
    DECISION_DETAIL,
    PREFILL_POD,
    PREFILL_POD_IP,
    ROUTING_STRATEGY,
    SESSION_ID,
    TARGET_POD,
    TARGET_POD_IP,
)
from pdrouter.openai.rate_limit_headers import LimitState, describe_limits
from pdrouter.openai.sessions import write_session_id
from pdrouter.routing.explanation import describe_in_detail
from pdrouter.serving.record import RequestRecord, describe_decision
from pdrouter.users.counters import Measure

_DETAIL_LENGTH = 8192
_DETAIL_CANDIDATES = 10


def explain(record: RequestRecord, *, expose_pods: bool, in_detail: bool) -> Headers:
    """Return the headers for the answer to a request, however far the request has come.

    Args:
        record: what is known of the request.
        expose_pods: whether the client is told names and addresses of pods.
        in_detail: whether it is told candidates and scores.
    """
    headers = [*pair_ids(record.request_id, record.client_request_id)]
    if record.standings:
        headers += tell_limits(record)
    if record.profile:
        headers.append((CHOSEN_PROFILE, record.profile))
    decision = record.decision
    if decision is None:
        return tuple(headers)
    headers.append((DECISION, describe_decision(record)))
    if in_detail:
        detail = msgspec.json.encode(describe_in_detail(decision, _DETAIL_CANDIDATES)).decode()
        headers.append((DECISION_DETAIL, detail[:_DETAIL_LENGTH]))
    if expose_pods:
        headers += [
            ("request-id", record.request_id),
            (ROUTING_STRATEGY, record.asked_strategy),
        ]
        if record.forwarded:
            pod = decision.last.pod
            headers += [(TARGET_POD, pod.name), (TARGET_POD_IP, pod.address)]
            if decision.session is not None:
                headers.append((SESSION_ID, write_session_id(pod.address)))
        if record.prefill_pod is not None:
            headers += [
                (PREFILL_POD, record.prefill_pod.name),
                (PREFILL_POD_IP, record.prefill_pod.ip),
            ]
    return tuple(headers)


def tell_limits(record: RequestRecord) -> Headers:
    """Return the headers that tell a client what is left of its limits.

    Of several limits of a kind, it is the one that is nearest to its end.
    """
    if not record.standings:
        return ()
    told: dict[str, LimitState] = {}
    for standing in record.standings:
        quota = standing.quota
        if quota.shared or quota.measure is Measure.CONCURRENT:
            continue
        state = LimitState(quota.limit, standing.remaining, standing.reset_s)
        known = told.get(quota.measure)
        if known is None or state.share_left < known.share_left:
            told[quota.measure] = state
    return describe_limits(record.path, told, time.time())
