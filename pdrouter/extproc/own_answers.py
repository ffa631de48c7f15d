"""What the router answers by itself: which models there are, and whether there are any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import unquote

import msgspec

from pdrouter import __version__
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.extproc.front_door import require_method
from pdrouter.openai.models import encode_model, encode_models, unknown_model, unsupported_model
from pdrouter.openai.paths import HEALTH_PATH, MODELS_PATH, PING_PATH, VERSION_PATH
from pdrouter.serving.permissions import check_model
from pdrouter.users.permissions import list_models
from pdrouter.users.user import User

_MODEL_PATH = MODELS_PATH + "/"

PUBLIC_PATHS = frozenset({HEALTH_PATH, PING_PATH})
"""Answered without a key: load balancers and load generators ask there."""


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """An answer of the router's own.

    Attributes:
        status: HTTP status.
        body: JSON.
    """

    status: int
    body: bytes


def answer(path: str, method: str, cache: PodCache, user: User | None) -> OwnAnswer | None:
    """Return the answer to a request; None if the path is none of the router's own.

    A user is told of the models that one may use.

    Raises:
        RequestRejected: it is, but there is no such model, or not with this method.
    """
    page = _PAGES.get(path)
    if page is not None:
        require_method(method, "GET", "HEAD")
        return page(cache.view, user)
    if not path.startswith(_MODEL_PATH) or path == _MODEL_PATH:
        return None
    name = unquote(path.removeprefix(_MODEL_PATH))
    require_method(method, "GET", "HEAD")
    check_model(user, name, cache)
    model = cache.view.models.get(name)
    if model is None:
        raise unknown_model(name, cache.view.names)
    if model.unsupported:
        raise unsupported_model(name, model.unsupported)
    return OwnAnswer(200, encode_model(name))


def _list_models(view: ClusterView, user: User | None) -> OwnAnswer:
    return OwnAnswer(200, encode_models(list_models(user, view)))


def _show_health(view: ClusterView, user: User | None) -> OwnAnswer:
    del user
    if any(pods.whole or pods.prefill for pods in view.models.values()):
        return OwnAnswer(200, b'{"status":"ok"}')
    return OwnAnswer(503, b'{"status":"unavailable","reason":"no model has a ready pod"}')


def _show_version(view: ClusterView, user: User | None) -> OwnAnswer:
    del view, user
    return OwnAnswer(200, msgspec.json.encode({"version": __version__, "server": "pdrouter"}))


_PAGES: Mapping[str, Callable[[ClusterView, User | None], OwnAnswer]] = MappingProxyType(
    {
        MODELS_PATH: _list_models,
        HEALTH_PATH: _show_health,
        PING_PATH: _show_health,
        VERSION_PATH: _show_version,
    }
)
