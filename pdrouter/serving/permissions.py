"""Refuses models that a user may not ask for, and tells nobody of them."""

from pdrouter.cluster.view import PodCache
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.models import unknown_model
from pdrouter.users.permissions import list_models, may_use
from pdrouter.users.user import User

_NAME_LENGTH = 200


def check_model(user: User | None, name: str, cache: PodCache) -> None:
    """Check that a user may ask for a model, whether there is one of this name or not.

    Raises:
        RequestRejected: one may not; or there is none of this name, which is then said without
            those that one may not ask for.
    """
    if user is None or user.models is None:
        return
    view = cache.view
    if not may_use(user, name, view):
        message = f"user {user.name!r} may not use model {name[:_NAME_LENGTH]!r}"
        raise RequestRejected(403, "model_not_allowed", message, "model")
    if name not in view.models and name not in view.ambiguous and cache.synced:
        raise unknown_model(name, tuple(list_models(user, view)))
