"""What Envoy says of an answer beside its headers."""

from collections.abc import Mapping
from typing import Any

from pdrouter.extproc.messages import ResponseHeaders
from pdrouter.openai.headers import LB_NAMESPACE, SERVED_ENDPOINT


def read_attributes(event: ResponseHeaders) -> Mapping[str, Any]:
    """Return Envoy's attributes of an answer, with the pod that has given it if anybody says so."""
    attributes = event.attributes
    if "upstream.address" not in attributes:
        served = event.metadata().get(LB_NAMESPACE, {}).get(SERVED_ENDPOINT)
        if isinstance(served, str) and served:
            return {**attributes, "upstream.address": served}
    return attributes
