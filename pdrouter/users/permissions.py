"""Which models a user may ask for, by whatever name."""

from collections.abc import Iterator

from pdrouter.cluster.view import ClusterView, ModelPods
from pdrouter.users.user import User


def find_full_name(pods: ModelPods) -> str:
    """Return the name of a model that is its own in all namespaces."""
    namespace = min((pod.namespace for pod in pods.pods), default="")
    return f"{namespace}/{pods.model}"


def may_use(user: User | None, name: str, view: ClusterView) -> bool:
    """Return whether a user may ask for a model by a name.

    The name may be another than the one that the user's list has, as long as both mean the same.

    Args:
        user: the user; None for nobody in particular, who may ask for everything.
        name: the name.
        view: knows what names mean.
    """
    if user is None or user.may_use(name):
        return True
    pods = view.models.get(name)
    if pods is None:
        return False
    if user.may_use(find_full_name(pods)):
        return True
    return view.models.get(pods.model) is pods and user.may_use(pods.model)


def list_models(user: User | None, view: ClusterView) -> Iterator[str]:
    """Yield the names of the models that a user may ask for."""
    return (name for name in view.names if may_use(user, name, view))
