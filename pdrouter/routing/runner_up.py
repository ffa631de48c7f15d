"""The pod that takes the last leg if Envoy cannot connect to the chosen one."""

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Decision
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.state import RoutingState


def find_runner_up(decision: Decision, pods: ModelPods, state: RoutingState) -> Pod | None:
    """Return the next best of the pods that the last leg was chosen from; None if there is none.

    It may take the same body: where the request is split, it is a decode pod of the same roleset.

    Args:
        decision: what was chosen.
        pods: the newest view of the model's pods: some may have gone meanwhile.
        state: their condition: some may have failed meanwhile.
    """
    last = decision.last
    chosen = last.pod
    able = pods.whole if decision.whole else pods.decode.get(chosen.pairing, ())
    if len(able) < 2 or len(last.candidates) < 2:
        return None
    failures = state.failures
    troubles = {} if failures.calm else failures.look(pods.model)[Leg.DECODE]
    ready = {pod.uid: pod for pod in able}
    left, scores = [], []
    for candidate, score in zip(last.candidates, last.scores, strict=True):
        pod = ready.get(candidate.uid)
        # The headers for rank and path go to both.
        if pod is None or pod.number != chosen.number or pod.engine != chosen.engine:
            continue
        if pod.address != chosen.address and pod.uid not in troubles:
            left.append(pod)
            scores.append(score)
    return left[pick_lowest(scores, state.random)] if left else None
