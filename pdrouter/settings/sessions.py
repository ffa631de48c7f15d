"""The settings of sessions: what names them, and how far their requests stay together."""

import re
from dataclasses import dataclass

from pdrouter.settings.choices import SessionAffinity
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import ValueKind, enumeration, number

BODY = "body."
"""What the names of members of bodies begin with among the names of what names sessions."""

_HEADER = re.compile(r"[a-z0-9][-a-z0-9_.]{0,63}", re.ASCII)
_MEMBER = re.compile(r"\w[-\w]{0,63}(?:\.\w[-\w]{0,63})?", re.ASCII)

SESSION_KEYS = (
    "x-session-id",
    "x-aibrix-session-key",
    "body.conversation_params.conversation_id",
    "x-session-affinity",
    "x-multi-turn-session-id",
    "x-claude-code-session-id",
    "body.session_id",
    "body.conversation",
    "body.prompt_cache_key",
    "x-correlation-id",
    "body.metadata.user_id",
    "body.user",
)
"""What names a session, the first that a request has: what is made for it before what is not.

aibrix's headers, TensorRT-LLM's member and headers, Claude Code's, vLLM's member, OpenAI's; then a
header that some meshes give to each request, Anthropic's member, and the name of a user, who may
have several sessions.
"""


def _parse_keys(text: str) -> tuple[str, ...]:
    names = []
    for part in text.split(","):
        name = part.strip()
        if name.startswith(BODY) and _MEMBER.fullmatch(name.removeprefix(BODY)):
            names.append(name)
        elif _HEADER.fullmatch(name.lower()) and not name.startswith(BODY):
            names.append(name.lower())
        else:
            raise ValueError(text)
    return tuple(dict.fromkeys(names))


KEYS = ValueKind(
    _parse_keys,
    "names of headers, and of members of bodies as `body.member` or `body.member.member`, "
    "separated by commas",
)


@dataclass(frozen=True)
class SessionSettings:
    """Settings of sessions."""

    session_affinity: SessionAffinity = declare(
        SessionAffinity.OFF,
        "PDROUTER_SESSION_AFFINITY",
        enumeration(SessionAffinity, *SessionAffinity),
        "Whether the requests of a session go to the same last pod, with any strategy: `off`, "
        "`soft` (while that has not much more to do than the others) or `strict` (while it can "
        "serve them). The strategy and the policy `session-affinity` are soft unless this is "
        "`strict`.",
        "--session-affinity",
    )
    session_keys: tuple[str, ...] = declare(
        SESSION_KEYS,
        "PDROUTER_SESSION_KEYS",
        KEYS,
        "What names a session: headers, and members of bodies as `body.user`. The first that a "
        "request has counts.",
    )
    session_load_factor: float = declare(
        1.25,
        "PDROUTER_SESSION_LOAD_FACTOR",
        number(float, "a number", 1, 100),
        "How many times the mean of all pods' requests the pod of a session may have before its "
        "requests go to the next one (`soft`).",
        advanced=True,
    )
    session_load_slack: int = declare(
        4,
        "PDROUTER_SESSION_LOAD_SLACK",
        number(int, "a whole number", 0, 10_000),
        "How many requests more than that it may have: a few in flight are no imbalance (`soft`).",
        advanced=True,
    )
