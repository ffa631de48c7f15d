"""Filters: which of some pods are candidates at all."""

from collections.abc import Collection, Sequence

from pdrouter.cluster.pods import PairingKey, Pod


def keep_untried(pods: Sequence[Pod], tried: Collection[str]) -> list[Pod]:
    """Drop the pods with these UIDs."""
    return [pod for pod in pods if pod.uid not in tried]


def keep_partners(pods: Sequence[Pod], pairing: PairingKey) -> list[Pod]:
    """Keep the pods that form a pair with a pod of this pairing key."""
    return [pod for pod in pods if pod.pairing == pairing]
