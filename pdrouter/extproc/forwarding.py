"""The replies that send a request on its way."""

from collections.abc import Mapping
from typing import Any

from pdrouter.extproc.dispatch import Dispatched
from pdrouter.extproc.front_door import has_known_body
from pdrouter.extproc.headers import (
    DESTINATION_ENDPOINT,
    MODEL,
    REQUEST_ID,
    ROUTING_STRATEGY,
    STRIPPED_HEADERS,
    TARGET_POD,
)
from pdrouter.extproc.messages import BodyMode, Phase, PhaseReply, ReplaceBody
from pdrouter.extproc.modes import ask_for_trailers

STRIP = PhaseReply(Phase.REQUEST_HEADERS, remove_headers=STRIPPED_HEADERS)
"""The reply to the headers of a request that has a body."""


def strip(headers: Mapping[str, str], response_body: BodyMode | None) -> PhaseReply:
    """Return the reply to the headers of a request, after which its body comes.

    Args:
        headers: the client's headers.
        response_body: the mode of response bodies; None if it is not known.
    """
    if has_known_body(headers):
        return STRIP
    # Trailers may come without a body: to a filter that does not send them, that is nothing, and
    # the request would go on.
    return PhaseReply(
        Phase.REQUEST_HEADERS,
        remove_headers=STRIPPED_HEADERS,
        mode_override=ask_for_trailers(response_body),
    )


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
