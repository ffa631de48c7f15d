"""The filter's processing modes: which of them can work, and what is changed for one request."""

from functools import lru_cache

from pdrouter.extproc.codec import keep
from pdrouter.extproc.messages import (
    BodyMode,
    Event,
    HeaderMode,
    ModeOverride,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ResponseBody,
    StreamedBody,
)
from pdrouter.openai.errors import RequestRejected

_STREAMED = BodyMode.STREAMED
_UNSEEN = (None, BodyMode.NONE)
_ECHOING = (BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC)
_UNCHANGED = {phase: keep(PhaseReply(phase)) for phase in Phase}
_WITHOUT_BODY = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.NONE)
_WITH_BODY = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.STREAMED)


# All requests that come through one filter have the same.
@lru_cache(maxsize=64)
def check_modes(config: ProtocolConfig | None) -> None:
    """Refuse body modes under which the filter would wait for replies of another kind.

    Raises:
        RequestRejected: the filter has such a mode.
    """
    if config is None:  # An Envoy that does not tell; the manifests for it say BUFFERED.
        return
    request, response = config.request_body_mode, config.response_body_mode
    if request is not BodyMode.BUFFERED:
        raise misconfigured(f"request_body_mode is {request.name}, but must be BUFFERED")
    if response not in (BodyMode.NONE, BodyMode.STREAMED):
        raise misconfigured(f"response_body_mode is {response.name}, but must be NONE")


def misconfigured(what: str) -> RequestRejected:
    """Return the error for a setting of the filter that cannot work."""
    return RequestRejected(500, "ext_proc_misconfigured", f"the ext_proc filter's {what}")


def headers_skipped() -> RequestRejected:
    """Return the error for a filter that sends no request headers."""
    return misconfigured("request_header_mode is SKIP, but must be SEND")


def ask_for_rest(response_body: BodyMode | None) -> ModeOverride:
    """Return what makes Envoy send all that the router must see of the rest of a request.

    Trailers may come without a body: to a filter that does not send them, that is nothing, and the
    request would go on undecided. And without a response's headers nobody knows how it went.

    Args:
        response_body: the mode of response bodies, which stays; None if it is not known.
    """
    return ModeOverride(
        request_body=BodyMode.BUFFERED,
        request_trailers=HeaderMode.SEND,
        response_headers=HeaderMode.SEND,
        response_body=response_body or BodyMode.NONE,
    )


def ask_for_answer(response_body: BodyMode | None) -> ModeOverride | None:
    """Return what makes Envoy send a response's body in this mode; None if nothing is needed."""
    return None if response_body is _STREAMED else _WITH_BODY


def skip_answer(response_body: BodyMode | None) -> ModeOverride | None:
    """Return what keeps Envoy from sending a response's body; None if nothing is needed.

    A response body that passes through the router costs a message per token.
    """
    return None if response_body in _UNSEEN else _WITHOUT_BODY


def pass_on(event: Event, response_body: BodyMode | None) -> PhaseReply:
    """Return the reply that lets a message pass as it is."""
    if response_body in _ECHOING and isinstance(event, ResponseBody):
        return PhaseReply(event.phase, body=StreamedBody(event.body, event.end_of_stream))
    return _UNCHANGED[event.phase]
