"""What an operator decides about the way of a request."""

from dataclasses import dataclass, field

from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.settings.choices import FailurePolicy
from pdrouter.settings.sessions import SESSION_KEYS


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """What an operator may decide about the way of a request.

    Attributes:
        default_strategy: name of the strategy without a `routing-strategy` header; None to let such
            requests pass by their model's own route.
        split_multimodal: whether prompts with images, sound or files get two legs.
        on_prefill_failure: what to do if no pod carries out the prefill leg.
        on_handoff_failure: what to do if a pod has, but its answer is of no use to a decode engine.
        forward_headers: client headers for the prefill leg beside the usual ones.
        max_forwarded_bytes: size of the largest body that Envoy takes back.
        expose_pods: whether errors tell clients names and addresses of pods.
        trust_ec_locator: whether requests come from a router that has media encoded, and names
            where.
        names_second: whether Envoy is told a second pod, should it not reach the first.
        deadlines: when requests are due that do not say so, and what classes mean.
        assumes_deadlines: whether requests that do not say so are due at all.
        session_keys: headers and members of bodies that name sessions, the first before the others.
    """

    default_strategy: str | None
    split_multimodal: bool
    on_prefill_failure: FailurePolicy
    on_handoff_failure: FailurePolicy
    forward_headers: tuple[str, ...]
    max_forwarded_bytes: int
    expose_pods: bool = True
    trust_ec_locator: bool = False
    names_second: bool = False
    deadlines: DeadlineRules = field(default_factory=DeadlineRules)
    assumes_deadlines: bool = False
    session_keys: tuple[str, ...] = SESSION_KEYS
