"""Requests for which nobody names a strategy: they go by their model's own route in Envoy."""

from pdrouter.cluster.source import RouteCheck, RouteUnavailable
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.openai.errors import RequestRejected
from pdrouter.serving.refusals import refuse_for_now


async def check_route(routes: RouteCheck | None, pods: ModelPods, cache: PodCache) -> None:
    """Check that a request can go by its model's own route.

    Args:
        routes: checks routes; None to let requests pass unchecked.
        pods: the pods of the model.
        cache: knows what names mean.

    Raises:
        RequestRejected: it cannot.
    """
    if cache.view.models.get(pods.model) is not pods:
        # Envoy's route goes by the name alone, and so perhaps to another namespace.
        message = f"there are several models {pods.model!r}: to ask for one, name a strategy"
        raise RequestRejected(400, "model_ambiguous", message, "model")
    if routes is None:
        return
    try:
        await routes.check(pods.model)
    except RouteUnavailable as unavailable:
        raise refuse_for_now(503, "route_unavailable", str(unavailable)) from unavailable
