"""Paths that clients know from elsewhere, and why they are not served here."""

from collections.abc import Mapping
from types import MappingProxyType

_KEPT = (
    "what it keeps for later belongs to no engine: lead it to the service that keeps it, by a "
    "route of its own (with aibrix, its metadata service)"
)
_ADMINISTRATION = (
    "it administers one engine, and is not passed on: ask the pod itself, or let a ModelAdapter "
    "load adapters"
)
_REASONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("/files", "/uploads", "/batches", "/fine_tuning", "/vector_stores"),
                *("/assistants", "/threads", "/conversations", "/containers", "/evals"),
            ),
            _KEPT,
        ),
        **dict.fromkeys(
            (
                *("/load_lora_adapter", "/unload_lora_adapter", "/sleep", "/wake_up"),
                *("/is_sleeping", "/pause", "/resume", "/reset_prefix_cache", "/collective_rpc"),
                *("/start_profile", "/stop_profile", "/flush_cache", "/update_weights_from_disk"),
                *("/scale_elastic_ep", "/server_info", "/get_server_info", "/runtime"),
            ),
            _ADMINISTRATION,
        ),
        "/realtime": "a conversation over a WebSocket is none of single requests: ask in requests, "
        "which may be streamed, or lead it to an engine by a route of its own",
        "/videos": "a job is known to the engine alone that has begun it: '/v1/videos/sync' and "
        "'/v1/video/generations' answer with the video itself",
        "/moderations": "no engine classifies content by this path: serve a model for it, and ask "
        "'/v1/classify' or '/v1/chat/completions'",
    }
)
"""Reasons by path, without `/v1`; they hold for what is below a path, too."""


def explain_unserved(path: str) -> str | None:
    """Return why a path is not served that others do serve; None if nothing is known of it."""
    bare = path.lower()
    while bare.startswith("/v1/"):
        bare = bare.removeprefix("/v1")
    first = "/" + bare[1:].partition("/")[0]
    return _REASONS.get(first)
