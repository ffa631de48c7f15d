"""Where an engine takes what clients ask for at another path."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pdrouter.cluster.pods import Pod
from pdrouter.engines.registry import find_path
from pdrouter.openai.request import InferenceRequest

_NONE: Mapping[str, str] = MappingProxyType({})


def find_own_path(request: InferenceRequest, pods: Sequence[Pod]) -> Mapping[str, str]:
    """Return the header with the path of the request to these pods; none where it is the client's.

    The pods of a model have one engine: the first one's counts.
    """
    asked = request.endpoint.path
    path = find_path(pods[0].engine, asked) if pods else asked
    return _NONE if path == asked else {":path": path + request.query}
