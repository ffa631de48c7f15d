"""What the router answers by itself: questions about models."""

from urllib.parse import unquote

from pdrouter.cluster.view import ClusterView
from pdrouter.extproc.front_door import require_method
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.models import encode_model, encode_models
from pdrouter.openai.paths import MODELS_PATH


def answer(path: str, method: str, view: ClusterView) -> bytes | None:
    """Return the JSON body of an answer; None if the path is none of the router's own.

    Raises:
        RequestRejected: it is, but there is no such thing, or not with this method.
    """
    if path != MODELS_PATH and not path.startswith(MODELS_PATH + "/"):
        return None
    require_method(method, "GET")
    if path == MODELS_PATH:
        return encode_models(view.names)
    name = unquote(path.removeprefix(MODELS_PATH + "/"))
    if name not in view.models:
        message = f"model {name[:200]!r} does not exist"
        raise RequestRejected(404, "model_not_found", message, "model")
    return encode_model(name)
