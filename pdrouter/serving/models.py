"""The pods of the model that a request asks for, or what stands in its way."""

from dataclasses import dataclass

from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.models import unknown_model
from pdrouter.serving.refusals import refuse_for_now
from pdrouter.serving.wakes import Wakes


@dataclass(frozen=True, slots=True)
class Models:
    """Finds models. One for the whole process.

    Attributes:
        cache: the pods.
        wakes: have models woken that sleep.
    """

    cache: PodCache
    wakes: Wakes

    def find(self, name: str) -> ModelPods:
        """Return the pods of a model.

        Raises:
            RequestRejected: there is no such model, or there are several, or it is not active.
        """
        view = self.cache.view
        pods = view.models.get(name)
        if pods is None:
            if not self.cache.synced:
                raise refuse_for_now(503, "no_ready_pod", "the pods are not known yet")
            names = view.ambiguous.get(name)
            if names is not None:
                message = f"model {name!r} is ambiguous: ask for {' or '.join(names)}"
                raise RequestRejected(400, "model_ambiguous", message, "model")
            raise unknown_model(name, view.names)
        if pods.dormant is not None:
            raise self.wakes.turn_away(pods.dormant, pods.model)
        return pods
