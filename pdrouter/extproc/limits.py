"""How much of an ext_proc message a request body may take."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

MESSAGE_OVERHEAD_BYTES = 64 * 1024
"""What a message of Envoy carries besides the body: framing, attributes, metadata. Envoy's own
limit for bodies is lower than the router's for messages by this much."""

HANDLE_HEADROOM_BYTES = 512 * 1024
"""What must be left, within Envoy's limit, for the KV handle that a body grows by."""

Admit: TypeAlias = Callable[[int], Awaitable[bool]]
"""Is asked before a message of so many bytes is let in; if it says no, the stream is to end."""
