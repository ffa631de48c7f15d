"""Whether a model's pods have as much to do as they should: then requests wait for their turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.kv_capacity import FULL, find_usage
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState

_NOBODY: frozenset[Leg] = frozenset()


@dataclass(frozen=True, slots=True)
class SaturationRules:
    """What an operator decides about the work that pods are given at a time.

    Attributes:
        backlog_s: predicted seconds of work that a prefill pod may have when it gets more.
        requests: requests that a pod may decode when it gets more; None for as many as its KV
            memory holds.
    """

    backlog_s: float = 0.1
    requests: int | None = None


DEFAULT_SATURATION = SaturationRules()


@dataclass(frozen=True, slots=True)
class OnTheWay:
    """Requests that have had their turn, and are not yet counted on the pod that computes them.

    Attributes:
        requests: how many there are.
        tokens: the length of their prompts.
    """

    requests: int = 0
    tokens: int = 0


NOTHING = OnTheWay()


def find_open_legs(
    pods: ModelPods,
    state: RoutingState,
    rules: SaturationRules,
    on_the_way: OnTheWay = NOTHING,
) -> frozenset[Leg]:
    """Return with which legs another request may begin now.

    A pod without any of this router's work takes more whatever else is known of it: so none is idle
    for the sake of what others are believed to have sent there, and nobody waits for nothing.

    Args:
        pods: the pods of the model.
        state: their condition.
        rules: what the operator decided.
        on_the_way: what is to be counted beside what the ledger has.
    """
    sound, _ = keep_sound(pods, state.failures)
    legs = _NOBODY
    if _may_decode(sound.whole, state, rules):
        legs |= {Leg.DECODE}
    if _may_decode(sound.partners, state, rules) and _may_compute(
        sound.prefill, state, rules, on_the_way
    ):
        legs |= {Leg.PREFILL}
    return legs


def _may_compute(
    pods: Sequence[Pod], state: RoutingState, rules: SaturationRules, on_the_way: OnTheWay
) -> bool:
    if not pods:
        return True  # The router says what is missing.
    ledger = state.ledger
    loads = ledger.loads[Leg.PREFILL]
    idle = 0
    for pod in pods:
        idle += pod.uid not in loads
        if idle > on_the_way.requests:
            return True
    rates = ledger.rates
    coming = rates.measure(on_the_way.tokens, rates.default) * rates.unit_s / len(pods)
    uids = [pod.uid for pod in pods]
    waits = ledger.predict_prefills(uids, repeat(0.0, len(uids)))
    return min(waits) + coming <= rules.backlog_s


def _may_decode(pods: Sequence[Pod], state: RoutingState, rules: SaturationRules) -> bool:
    if not pods:
        return True
    loads, samples = state.ledger.loads[Leg.DECODE], state.samples
    for pod in pods:
        load, sample = loads.get(pod.uid), samples.get(pod.uid)
        if load is None:
            return True
        requests = load.requests + (0.0 if sample is None else sample.others)
        if rules.requests is not None and requests >= rules.requests:
            continue
        if sample is None:
            return True
        # In front of a decode pod with partners, what waits for its blocks waits, too.
        lines_up = pod.role is Role.BOTH and bool(sample.waiting)
        if not lines_up and find_usage(sample, load, 0) <= FULL:
            return True
    return False
