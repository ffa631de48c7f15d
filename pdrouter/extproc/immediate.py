"""The answers that the router gives in an engine's place."""

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.extproc.explanation import tell_limits
from pdrouter.extproc.messages import Headers, ImmediateReply
from pdrouter.extproc.request_ids import pair_ids
from pdrouter.openai.errors import RequestRejected, is_anthropic
from pdrouter.serving.dispatched import Completed
from pdrouter.serving.record import RequestRecord

_JSON = ("content-type", "application/json")
_KEPT_HEADERS = ("content-type", "retry-after", "www-authenticate")


def answer(status: int, body: bytes, record: RequestRecord) -> ImmediateReply:
    """Return an answer of the router's own, in JSON."""
    headers = (_JSON, *_name(record))
    return ImmediateReply(status, headers, body, _describe("answered"))


def refuse(rejected: RequestRejected, record: RequestRecord) -> ImmediateReply:
    """Return an error of the router's own, in the dialect of the request's path."""
    headers = (_JSON, *rejected.headers, *tell_limits(record), *_name(record))
    if is_anthropic(record.path):
        headers = (*headers, ("request-id", record.request_id))
    body = rejected.body(record.path, record.request_id)
    return ImmediateReply(rejected.status, headers, body, _describe(rejected.code))


def pass_refusal(answer: EngineAnswer, explanation: Headers) -> ImmediateReply:
    """Return a prefill engine's own error."""
    kept = [(name, answer.headers[name]) for name in _KEPT_HEADERS if name in answer.headers]
    headers = (*kept, *explanation)
    return ImmediateReply(answer.status, headers, answer.body, _describe("prefill_refused"))


def complete(completed: Completed, explanation: Headers) -> ImmediateReply:
    """Return the answer of side legs that have left nothing to do for the last one."""
    headers = (("content-type", completed.content_type), *explanation)
    return ImmediateReply(200, headers, completed.body, _describe("completed"))


def _name(record: RequestRecord) -> Headers:
    return pair_ids(record.request_id, record.client_request_id)


def _describe(reason: str) -> str:
    return f"pdrouter_{reason}"
