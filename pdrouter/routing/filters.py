"""Filters: which of some pods are candidates at all."""

from collections.abc import Collection, Sequence

from pdrouter.cluster.pods import PairingKey, Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.label_selector import LabelSelector


def keep_untried(pods: Sequence[Pod], tried: Collection[str]) -> list[Pod]:
    """Drop the pods with these UIDs."""
    return [pod for pod in pods if pod.uid not in tried]


def keep_partners(pods: Sequence[Pod], pairing: PairingKey) -> list[Pod]:
    """Keep the pods that form a pair with a pod of this pairing key."""
    return [pod for pod in pods if pod.pairing == pairing]


def keep_partners_of(pods: ModelPods, prefill: Pod) -> ModelPods:
    """Keep the decode pods that form a pair with this prefill pod, ready or not; it is the only."""
    partners = pods.decode.get(prefill.pairing)
    if partners is None:
        return pods.keep_pairs((), {})
    return pods.keep_pairs((prefill,), {prefill.pairing: partners})


def keep_selected(pods: ModelPods, selector: LabelSelector | None) -> ModelPods:
    """Keep the pods of a model whose labels are as asked, sorted anew: partners may be gone."""
    if selector is None:
        return pods
    return ModelPods.group(pods.model, (pod for pod in pods.pods if selector.matches(pod.labels)))
