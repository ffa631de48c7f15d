"""Which pods a client asks for by their labels."""

from collections.abc import Mapping

from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.headers import EXTERNAL_FILTER
from pdrouter.routing.label_selector import LabelSelector, SelectorInvalid, parse_selector


def read_selector(headers: Mapping[str, str]) -> LabelSelector | None:
    """Return the labels that pods must have, as a client's header says; None for any.

    Raises:
        RequestRejected: the header cannot be understood.
    """
    text = headers.get(EXTERNAL_FILTER, "")
    if not text.strip():
        return None
    try:
        return parse_selector(text)
    except SelectorInvalid as invalid:
        message = f"{EXTERNAL_FILTER}: {invalid}"
        raise RequestRejected(400, "invalid_external_filter", message, EXTERNAL_FILTER) from invalid
