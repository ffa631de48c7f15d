"""The pods at one moment, by model, and the place where the newest such view is kept."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pdrouter.cluster.places import are_placed
from pdrouter.cluster.pod_config import PodConfig
from pdrouter.cluster.pods import Claim, Inactive, PairingKey, Pod, Role
from pdrouter.cluster.revisions import count_versions, find_unmatched, report_unmatched
from pdrouter.settings.choices import ENCODE_ENGINES

# As in `revisions.py`, looked up once: there are many pods.
_ENCODE, _PREFILL, _DECODE = Role.ENCODE, Role.PREFILL, Role.DECODE
_WHOLE = (Role.DECODE, Role.BOTH)
_NO_ENCODERS: tuple[Mapping[PairingKey, tuple[Pod, ...]], frozenset[Role]] = (
    MappingProxyType({}),
    frozenset(),
)


@dataclass(frozen=True, slots=True)
class ModelPods:
    """The pods of one model, and all that follows from them alone: requests only look it up.

    Attributes:
        model: name of the model.
        pods: every known pod, ready or not.
        prefill: ready prefill pods that have a ready decode pod to pair with.
        decode: ready decode pods by what a prefill pod must have in common with them.
        partners: the decode pods of the prefill pods' rolesets, in the order of these.
        whole: ready pods that may serve a request whole: decode pods, and those without a part.
        disaggregated: whether any pod, ready or not, has a role in disaggregation.
        config: what the model's owner asks of the router: the first ready pod that says anything
            speaks for all, for one that terminates has yesterday's; None for nothing.
        claim: the most that any of the pods does for its namespace's claim to the name.
        unsupported: why none of the pods can ever be spoken to, for people; empty if one can.
        unmatched: ready pods that have no ready partner because of their revision alone.
        versions: how many versions of one roleset form pairs, at most.
        placed: whether some pairs are nearer to each other than others.
        encode: ready pods that encode, by what those that take it must have in common with them.
        takers: where there are such pods, the roles of those that may take what they encode.
        prefill_uids: what `prefill` were before any was left out for the sake of one request.
        dormant: where its engine will run, if a request is turned away until then; None where a pod
            serves the model, or none ever will.
    """

    model: str
    pods: tuple[Pod, ...]
    prefill: tuple[Pod, ...]
    decode: Mapping[PairingKey, tuple[Pod, ...]]
    partners: tuple[Pod, ...]
    whole: tuple[Pod, ...]
    disaggregated: bool
    config: PodConfig | None
    claim: Claim
    unsupported: str
    unmatched: tuple[Pod, ...]
    versions: int
    placed: bool
    encode: Mapping[PairingKey, tuple[Pod, ...]]
    takers: frozenset[Role]
    prefill_uids: tuple[str, ...]
    dormant: Pod | None = None

    @classmethod
    def group(cls, model: str, pods: Iterable[Pod]) -> "ModelPods":
        """Sort the pods of a model by what they may be used for."""
        known = tuple(pods)
        ready = [pod for pod in known if pod.ready]
        decode: defaultdict[PairingKey, list[Pod]] = defaultdict(list)
        for pod in ready:
            if pod.role is _DECODE:
                decode[pod.pairing].append(pod)
        prefill = tuple(pod for pod in ready if pod.role is _PREFILL and pod.pairing in decode)
        partners = _find_partners(prefill, decode)
        return cls(
            model,
            known,
            prefill,
            MappingProxyType({key: tuple(group) for key, group in decode.items()}),
            partners,
            tuple(pod for pod in ready if pod.role in _WHOLE and pod.serves_whole),
            any(pod.role in (Role.PREFILL, Role.DECODE) for pod in known),
            next((pod.config for pod in (*ready, *known) if pod.config is not None), None),
            max((pod.claim for pod in known), default=Claim.NONE),
            _find_unsupported(known),
            find_unmatched(known),
            count_versions(prefill),
            are_placed(prefill, partners),
            *_find_encoders(known, ready),
            tuple(pod.uid for pod in prefill),
            None if ready else _find_dormant(known),
        )

    def keep_pairs(
        self, prefill: Iterable[Pod], decode: Mapping[PairingKey, tuple[Pod, ...]]
    ) -> "ModelPods":
        """Return the same with fewer pods to form pairs of."""
        kept = tuple(prefill)
        partners = _find_partners(kept, decode)
        return replace(self, prefill=kept, decode=MappingProxyType(decode), partners=partners)

    def find_encoders(self, taker: Pod) -> tuple[Pod, ...]:
        """Return the pods that may encode for another one; none if it takes nothing."""
        if taker.role not in self.takers:
            return ()
        return self.encode.get(taker.encoding, ())


def _find_dormant(pods: Iterable[Pod]) -> Pod | None:
    """Return the pod whose engine is nearest to serving a model; None if none is for it."""
    order = list(Inactive)
    dormant = [(order.index(pod.inactive), pod.uid, pod) for pod in pods if pod.inactive]
    return min(dormant)[2] if dormant else None


def _encodes(pod: Pod) -> bool:
    return pod.role is _ENCODE and pod.engine in ENCODE_ENGINES


def _find_encoders(
    known: Iterable[Pod], ready: Iterable[Pod]
) -> tuple[Mapping[PairingKey, tuple[Pod, ...]], frozenset[Role]]:
    """Return the pods that encode, and who takes what they encode.

    That is who computes prompts: where there are prefill pods, ready or not, the others need not be
    set up for it.
    """
    encode: defaultdict[PairingKey, list[Pod]] = defaultdict(list)
    for pod in ready:
        if _encodes(pod):
            encode[pod.encoding].append(pod)
    if not encode:
        return _NO_ENCODERS
    takers = (_PREFILL,) if any(pod.role is _PREFILL for pod in known) else _WHOLE
    return MappingProxyType({key: tuple(group) for key, group in encode.items()}), frozenset(takers)


def _find_unsupported(pods: Iterable[Pod]) -> str:
    reasons = [pod.unsupported for pod in pods if pod.role is not Role.OTHER]
    return reasons[0] if reasons and all(reasons) else ""


def _find_partners(
    prefill: Iterable[Pod], decode: Mapping[PairingKey, Sequence[Pod]]
) -> tuple[Pod, ...]:
    # In a set, the order of rolesets would change from run to run, and with it who wins ties.
    rolesets = dict.fromkeys(pod.pairing for pod in prefill)
    return tuple(pod for key in rolesets for pod in decode[key])


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Immutable snapshot of all models and their pods.

    Attributes:
        models: models and adapters by every name that requests may use.
        pods: every known pod, once.
        names: one name for each model and adapter that can be served.
        ambiguous: names that stand for models of several namespaces, with the names to use instead.
        left_out: the names of those that cannot, with the reasons.
        unmatched: ready pods that have no ready partner because of their revision alone.
        encoding: namespaces in which a pod encodes for others, ready or not.
    """

    models: Mapping[str, ModelPods]
    pods: tuple[Pod, ...]
    names: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unmatched: tuple[Pod, ...] = ()
    encoding: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        models: Mapping[str, ModelPods],
        pods: tuple[Pod, ...],
        names: Iterable[str],
        ambiguous: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> "ClusterView":
        """Return a view whose names are told apart by whether they can be served.

        Args:
            models: models and adapters by every name that requests may use.
            pods: every known pod, once.
            names: one name for each model and adapter.
            ambiguous: names that stand for models of several namespaces.
        """
        listed = tuple(names)
        left_out = {name: models[name].unsupported for name in listed if models[name].unsupported}
        served = tuple(name for name in listed if name not in left_out)
        # A model has several names, and its adapters may be on some of its pods only.
        unmatched = {
            pod.uid: pod
            for group in models.values()
            for pod in group.unmatched
            if pod.model == group.model
        }
        return cls(
            models,
            pods,
            served,
            ambiguous,
            MappingProxyType(left_out),
            tuple(unmatched.values()),
            frozenset({pod.namespace for pod in pods if _encodes(pod)}),
        )

    def may_share_encodings(self, pods: ModelPods) -> bool:
        """Return whether a model's engines may be some that get what others have encoded.

        An adapter, or a second name of a model, need not be known to those that encode.
        """
        return bool(self.encoding) and any(pod.namespace in self.encoding for pod in pods.pods)

    @classmethod
    def build(cls, pods: Iterable[Pod]) -> "ClusterView":
        """Return the view of these pods, by model."""
        known = tuple(pods)
        by_model: defaultdict[str, list[Pod]] = defaultdict(list)
        for pod in known:
            by_model[pod.model].append(pod)
        models = {name: ModelPods.group(name, group) for name, group in by_model.items()}
        return cls.of(MappingProxyType(models), known, models)


class PodCache:
    """Holds the newest view. A source replaces it; everybody else reads it.

    Attributes:
        view: the newest view.
        synced: whether a source has delivered pods at least once.
    """

    __slots__ = ("_on_gone", "_on_restart", "synced", "view")

    def __init__(
        self,
        on_gone: Callable[[str], None] | None = None,
        on_restart: Callable[[str], None] | None = None,
    ) -> None:
        """Start without pods.

        Args:
            on_gone: called with the UID of each pod that a new view does not have any more.
            on_restart: called with the UID of each pod whose engine is another one in a new view.
        """
        self.view = ClusterView.build(())
        self.synced = False
        self._on_gone = on_gone
        self._on_restart = on_restart

    def replace(self, pods: Iterable[Pod]) -> None:
        """Make these pods the newest view."""
        self.publish(ClusterView.build(pods), synced=True)

    def publish(self, view: ClusterView, *, synced: bool) -> None:
        """Make this the newest view; what has been synced once stays so."""
        before, self.view = self.view, view
        report_unmatched(before.unmatched, view.unmatched)
        self.synced = self.synced or synced
        known = {pod.uid: pod for pod in before.pods}
        if self._on_restart is not None:
            for pod in view.pods:
                was = known.get(pod.uid)
                # Most are the very same.
                if was is not None and was is not pod and not pod.runs_the_engine_of(was):
                    self._on_restart(pod.uid)
        if self._on_gone is not None:
            for uid in known.keys() - {pod.uid for pod in view.pods}:
                self._on_gone(uid)
