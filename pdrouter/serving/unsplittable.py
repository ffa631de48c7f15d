"""Kinds of requests that prefill engines fail because one token cannot satisfy them."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pdrouter.openai.kind import RequestKind

REASON = "not-prefillable"
"""Reason of a decision: prefill engines answer requests of this kind with a 5xx status."""

_REMEMBERED_S = 60.0
_MOST_KINDS = 256
_LEAST_PODS = 2


@dataclass(slots=True)
class _Evidence:
    """What is known of a kind.

    Attributes:
        until: when it is forgotten.
        failed: UIDs of the pods that have failed it.
        whole: whether it is served whole.
        served: whether a pod has served it.
    """

    until: float
    failed: set[str] = field(default_factory=set)
    whole: bool = False
    served: bool = False


class UnsplittableKinds:
    """Remembers, for a minute, which kinds of requests of a model are better served whole.

    A kind is, once two pods have failed it, or all that the model has, and none has served it: a
    broken pod fails all kinds, and others serve them.

    Attributes:
        evidence: what is known of those that have failed; where it is empty, there is nothing to
            look up.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start with nothing.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self.evidence: OrderedDict[tuple[str, RequestKind], _Evidence] = OrderedDict()

    def is_whole(self, model: str, kind: RequestKind) -> bool:
        """Return whether requests of a kind are to be served whole now."""
        evidence = self._find(model, kind)
        return evidence is not None and evidence.whole

    def note_served(self, model: str, kind: RequestKind) -> None:
        """Note that a prefill pod has served a kind that others have failed."""
        evidence = self._find(model, kind)
        if evidence is not None:
            evidence.served, evidence.whole = True, False
            evidence.failed.clear()
            evidence.until = self._clock() + _REMEMBERED_S

    def note_failed(
        self, model: str, kind: RequestKind, tried: Collection[str], known: Collection[str]
    ) -> bool:
        """Note that all pods that were tried have failed a request with the same status.

        Args:
            model: name of the model.
            kind: what kind of request it was.
            tried: UIDs of the pods that were tried.
            known: UIDs of all prefill pods of the model.

        Returns:
            Whether that is the request's matter: False where another pod has served the kind.
        """
        evidence = self._find(model, kind)
        if evidence is None:
            if len(self.evidence) >= _MOST_KINDS:
                self.evidence.popitem(last=False)
            evidence = _Evidence(self._clock() + _REMEMBERED_S)
            self.evidence[model, kind] = evidence
        if evidence.served:
            return False
        evidence.failed.update(tried)
        if len(evidence.failed) >= _LEAST_PODS or evidence.failed.issuperset(known):
            evidence.whole = True
        return True

    def list_failed(self, model: str, kind: RequestKind) -> Collection[str]:
        """Return the UIDs of the pods that have failed a kind that is served whole."""
        evidence = self._find(model, kind)
        return evidence.failed if evidence is not None and evidence.whole else ()

    def _find(self, model: str, kind: RequestKind) -> _Evidence | None:
        evidence = self.evidence.get((model, kind))
        if evidence is not None and self._clock() >= evidence.until:
            del self.evidence[model, kind]
            return None
        return evidence
