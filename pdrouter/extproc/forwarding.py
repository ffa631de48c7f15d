"""The reply that sends a request on its way."""

from collections.abc import Mapping
from typing import Any

from pdrouter.extproc.dispatch import Dispatched
from pdrouter.extproc.headers import (
    DESTINATION_ENDPOINT,
    MODEL,
    REQUEST_ID,
    ROUTING_STRATEGY,
    TARGET_POD,
)
from pdrouter.extproc.messages import Phase, PhaseReply, ReplaceBody


def forward(
    dispatched: Dispatched,
    strategy: str | None,
    metadata: Mapping[str, Mapping[str, Any]] | None,
) -> PhaseReply:
    """Return the reply to the body of a request.

    Args:
        dispatched: where the request goes.
        strategy: name of the strategy.
        metadata: what Envoy is to keep of the request.
    """
    headers = [(REQUEST_ID, dispatched.request_id)]
    if dispatched.decode is None:
        headers.append((MODEL, dispatched.model))
    else:
        headers += [
            (TARGET_POD, dispatched.decode.address),
            (DESTINATION_ENDPOINT, dispatched.decode.address),
            (ROUTING_STRATEGY, strategy or ""),
        ]
    body = None
    if not dispatched.body.unchanged:
        headers.append(("content-length", str(len(dispatched.body))))
        body = ReplaceBody(dispatched.body)
    return PhaseReply(
        Phase.REQUEST_BODY,
        set_headers=tuple(headers),
        body=body,
        clear_route_cache=True,
        dynamic_metadata=metadata,
    )
