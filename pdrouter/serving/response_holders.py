"""Which pod keeps an answer of `/v1/responses`: its id says it, to any router, at any time."""

from collections.abc import Iterable, Mapping

from pdrouter.cluster.pods import TERMINATING, Pod
from pdrouter.cluster.view import ClusterView, ModelPods, PodCache
from pdrouter.engines.split import Leg
from pdrouter.openai.stored_responses import (
    read_tag,
    tag_holder,
    unknown_previous,
    unknown_response,
)
from pdrouter.routing.decision import Choice, Decision
from pdrouter.routing.label_selector import LabelSelector
from pdrouter.routing.sessions import POLICY as SESSION_AFFINITY
from pdrouter.serving.record import Observer, RequestRecord
from pdrouter.serving.refusals import refuse_for_now

POLICY = "response-id"
REASON = "stored-response"
"""Reason of a decision: the request is about an answer that this pod keeps."""


class ResponseHolders:
    """Finds the pods that keep answers. One for the whole process."""

    __slots__ = ("_cache", "_observer", "_tagged", "_view")

    def __init__(self, cache: PodCache, observer: Observer) -> None:
        """Set up.

        Args:
            cache: the pods.
            observer: is told of decisions.
        """
        self._cache = cache
        self._observer = observer
        self._view: ClusterView | None = None
        self._tagged: Mapping[str, Pod] = {}

    def find(self, response_id: str, owner: str, selector: LabelSelector | None = None) -> Pod:
        """Return the pod that keeps an answer.

        Args:
            response_id: id of the answer.
            owner: name of the user who asks.
            selector: labels that it must have; None for any.

        Raises:
            RequestRejected: there is none, or it cannot be asked now.
        """
        if not self._cache.synced:
            raise refuse_for_now(503, "no_ready_pod", "the pods are not known yet")
        pod = _keep_selected(self._find_tagged(read_tag(response_id, owner)), selector)
        if pod is None or _is_gone(pod):
            raise unknown_response(response_id)
        return _require_ready(pod)

    def dispatch(
        self,
        response_id: str,
        record: RequestRecord,
        strategy: str | None,
        selector: LabelSelector | None,
    ) -> Pod:
        """Return the pod to which a request about an answer goes: the one that keeps it.

        Args:
            response_id: id of the answer.
            record: gets the decision.
            strategy: name of the strategy under which Envoy routes requests.
            selector: labels that the pod must have; None for any.

        Raises:
            RequestRejected: there is none, or it cannot be asked now.
        """
        pod = self.find(response_id, record.user, selector)
        choice = Choice(Leg.DECODE, pod, POLICY, 0.0, (pod,), (0.0,), 0)
        record.model = pod.model
        record.strategy = record.asked_strategy = strategy or SESSION_AFFINITY
        record.decision = Decision((), choice, REASON)
        record.aggregated = REASON
        self._observer.request_routed(record)
        return pod

    def find_previous(
        self,
        response_id: str,
        owner: str,
        pods: ModelPods,
        selector: LabelSelector | None = None,
    ) -> Pod | None:
        """Return the pod that keeps what a request for a model goes on with.

        None if no router has made the id, so that it does not say who does.

        Args:
            response_id: id of what it goes on with.
            owner: name of the user who asks.
            pods: the pods of its model.
            selector: labels that the pod must have; None for any.

        Raises:
            RequestRejected: there is none among the model's pods, or it cannot be asked now.
        """
        tag = read_tag(response_id, owner)
        if tag is None:
            return None
        pod = _keep_selected(self._find_tagged(tag), selector)
        if pod is None or _is_gone(pod) or not _is_among(pods.pods, pod):
            raise unknown_previous(response_id)
        pod = _require_ready(pod)
        if not _is_among(pods.whole, pod):
            raise unknown_previous(response_id)
        return pod

    def _find_tagged(self, tag: str | None) -> Pod | None:
        if not tag:
            return None
        view = self._cache.view
        if view is not self._view:
            self._tagged = {tag_holder(pod.uid): pod for pod in view.pods}
            self._view = view
        return self._tagged.get(tag)


def _keep_selected(pod: Pod | None, selector: LabelSelector | None) -> Pod | None:
    """Return the pod if its labels are as asked: to who asks for others it is not there."""
    return None if pod is None or (selector and not selector.matches(pod.labels)) else pod


def _is_among(pods: Iterable[Pod], wanted: Pod) -> bool:
    return any(pod.uid == wanted.uid for pod in pods)


def _is_gone(pod: Pod) -> bool:
    """Return whether a pod will never be asked any more."""
    return pod.refused or bool(pod.unsupported) or pod.obstacle == TERMINATING


def _require_ready(pod: Pod) -> Pod:
    if not pod.ready:
        message = "the pod that keeps the response is not ready"
        raise refuse_for_now(503, "no_ready_pod", message)
    return pod
