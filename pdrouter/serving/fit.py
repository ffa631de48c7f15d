"""Whether a request fits the wires of its model's pods."""

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.registry import Splits
from pdrouter.openai.media import MULTIMODAL
from pdrouter.openai.request import SINGLE_POD_PATH, InferenceRequest


def find_misfit(
    request: InferenceRequest, pods: ModelPods, splits: Splits, *, encoded: bool
) -> str | None:
    """Return why a request cannot be split on its model's wires; None if it can.

    Args:
        request: the request.
        pods: the pods of its model.
        splits: how engines split requests.
        encoded: whether others encode its media, which are no reason then.
    """
    if request.endpoint.legs == 2 and pods.prefill:
        pod = pods.prefill[0]
        paths = splits.find(pod.engine, pod.kv_connector).paths
        if paths and request.endpoint.path not in paths:
            return request.whole or SINGLE_POD_PATH
    if not request.misfits:
        return None
    # Those that are not ready count, too: without them, the request waits for a pair.
    wires = _list_wires(pods, Role.PREFILL) or _list_wires(pods, Role.DECODE)
    if not wires:
        return request.whole
    fits = frozenset.intersection(*(splits.find(*wire).fits for wire in wires))
    if encoded:
        fits |= {MULTIMODAL}
    return next((reason for reason in request.misfits if reason not in fits), None)


def _list_wires(pods: ModelPods, role: Role) -> set[tuple[str, str | None]]:
    return {
        (pod.engine, pod.kv_connector)
        for pod in pods.pods
        if pod.role is role and not pod.unsupported
    }
