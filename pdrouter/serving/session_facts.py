"""What strategies need to know of what a request goes on with: a session, or a kept answer."""

from collections.abc import Mapping, Sequence

from msgspec import structs

from pdrouter.cluster.view import ModelPods
from pdrouter.openai.request import InferenceRequest
from pdrouter.openai.sessions import Session, read_session
from pdrouter.openai.stored_responses import PREVIOUS, is_kept, read_previous
from pdrouter.routing.decision import RoutingFacts
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.response_holders import ResponseHolders


def add_session(
    facts: RoutingFacts,
    request: InferenceRequest,
    pods: ModelPods,
    headers: Mapping[str, str],
    record: RequestRecord,
    *,
    keys: Sequence[str],
    holders: ResponseHolders,
) -> RoutingFacts:
    """Return the facts with the request's session, or the pod that it must go to.

    Args:
        facts: what else strategies need to know.
        request: the request.
        pods: the pods of its model.
        headers: the client's headers.
        record: knows who asks.
        keys: headers and members that may name the session.
        holders: know which pods keep answers.

    Raises:
        RequestRejected: it goes on with an answer that nobody keeps.
    """
    session = read_session(request, headers, keys)
    if not request.endpoint.stateful:
        return facts if session is None else structs.replace(facts, session=session)
    previous = read_previous(request)
    holder = None
    if previous:
        holder = holders.find_previous(previous, record.user, pods, facts.selector)
    if previous and holder is None:
        # Engines that share what they keep have ids of their own.
        session = Session(previous, f"body.{PREVIOUS}", bound=True)
    return structs.replace(
        facts,
        session=session,
        holder="" if holder is None else holder.uid,
        kept=is_kept(request),
    )
