"""What the way of a request begins with, and how it can end."""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.openai.paths import Endpoint
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.open_decision import OpenDecision

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class RequestHead(msgspec.Struct, frozen=True):
    """What a request's headers say.

    Attributes:
        endpoint: what the path asks for.
        query: query string of the path, with its question mark.
        headers: the client's headers, names in lower case.
    """

    endpoint: Endpoint
    query: str
    headers: Mapping[str, str]


class Dispatched(msgspec.Struct, frozen=True):
    """Where a request goes, and with which body.

    Attributes:
        body: body of the request that Envoy sends on.
        request_id: `x-request-id` of that request.
        pod: where it goes; None where the request passes without an endpoint.
        model: name of the model, as its engines know it.
        chosen: what counts it there; None where it passes without an endpoint.
        headers: headers of that request beside the client's, names in lower case.
    """

    body: Pieces
    request_id: str
    pod: Pod | None
    model: str
    chosen: OpenDecision | None = None
    headers: Mapping[str, str] = _NO_HEADERS


class Completed(msgspec.Struct, frozen=True):
    """What the client gets of a request whose side legs have left nothing to do for the last one.

    Attributes:
        body: body of the answer.
        content_type: what that is.
    """

    body: bytes
    content_type: str
