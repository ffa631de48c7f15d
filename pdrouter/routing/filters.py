"""Filters: which of some pods are candidates at all."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.label_selector import LabelSelector


def keep_others(pods: ModelPods, avoided: Collection[str]) -> ModelPods:
    """Keep the pairs whose prefill pods do not have these UIDs, and nothing that is no pair."""
    prefill = tuple(pod for pod in pods.prefill if pod.uid not in avoided)
    left = _keep_prefill(pods, prefill)
    return replace(left, pods=(*prefill, *left.partners), whole=())


def keep_roleset(pods: ModelPods, last: Pod) -> ModelPods:
    """Keep the pairs of a decode pod's roleset; those with this very pod, if it is still there."""
    key = last.pairing
    prefill = [pod for pod in pods.prefill if pod.pairing == key]
    partners = pods.decode.get(key, ())
    same = tuple(pod for pod in partners if pod.uid == last.uid and pod.address == last.address)
    return pods.keep_pairs(prefill, {key: same or partners} if prefill else {})


def keep_other_rolesets(pods: ModelPods, last: Pod) -> ModelPods:
    """Keep the pairs of all rolesets but that of a decode pod."""
    return _keep_prefill(pods, [pod for pod in pods.prefill if pod.pairing != last.pairing])


def keep_partners_of(pods: ModelPods, prefill: Pod) -> ModelPods:
    """Keep the decode pods that form a pair with this prefill pod, ready or not; it is the only."""
    partners = pods.decode.get(prefill.pairing)
    if partners is None:
        return pods.keep_pairs((), {})
    return pods.keep_pairs((prefill,), {prefill.pairing: partners})


def keep_encoded(pods: ModelPods) -> ModelPods:
    """Keep the pairs for whose prefill pod others encode; all where there are none."""
    prefill = [pod for pod in pods.prefill if pods.find_encoders(pod)]
    return _keep_prefill(pods, prefill) if prefill else pods


def keep_selected(pods: ModelPods, selector: LabelSelector | None) -> ModelPods:
    """Keep the pods of a model whose labels are as asked, sorted anew: partners may be gone.

    Those that encode stay: what they hold is chosen by content.
    """
    if selector is None:
        return pods
    kept = (pod for pod in pods.pods if pod.role is Role.ENCODE or selector.matches(pod.labels))
    return replace(ModelPods.group(pods.model, kept), prefill_uids=pods.prefill_uids)


def _keep_prefill(pods: ModelPods, prefill: Sequence[Pod]) -> ModelPods:
    return pods.keep_pairs(prefill, {pod.pairing: pods.decode[pod.pairing] for pod in prefill})
