"""Which web pages may call the API: Envoy's CORS filter, which stands before all others."""

import re

from envoy_data_plane.envoy.extensions.filters.http.cors import v3 as cors
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.openai.errors import ANTHROPIC_PATH
from pdrouter.openai.header_values import KEY_HEADERS
from pdrouter.openai.headers import (
    CHOSEN_PROFILE,
    CLIENT_REQUEST_ID,
    CONFIG_PROFILE,
    DECISION,
    DECISION_DETAIL,
    EXTERNAL_FILTER,
    FORWARDED_TO_SIDE_LEGS,
    REQUEST_CLASS,
    REQUEST_ID,
    ROUTING_STRATEGY,
    SESSION_ID,
    TTFT_TARGET,
)
from pdrouter.openai.rate_limit_headers import LimitState, describe_limits
from pdrouter.settings.sessions import BODY, SESSION_KEYS

ANY_ORIGIN = "*"
ALLOWED_METHODS = ("GET", "HEAD", "POST", "DELETE")
_MAX_AGE_S = 7200  # What browsers take at the most.

ALLOWED_HEADERS = tuple(
    dict.fromkeys(
        (
            *KEY_HEADERS,
            *("content-type", "accept", "user", "idempotency-key"),
            *("openai-organization", "openai-project", "openai-beta"),
            "anthropic-dangerous-direct-browser-access",
            # The SDKs for browsers add these to every request.
            *(
                f"x-stainless-{name}"
                for name in (
                    *("arch", "async", "helper", "helper-method", "lang", "os"),
                    *("package-version", "poll-helper", "custom-poll-interval", "read-timeout"),
                    *("retry-count", "runtime", "runtime-version", "timeout"),
                )
            ),
            *(REQUEST_ID, CLIENT_REQUEST_ID),
            *FORWARDED_TO_SIDE_LEGS,
            *(name for name in SESSION_KEYS if not name.startswith(BODY)),
            *(ROUTING_STRATEGY, CONFIG_PROFILE, EXTERNAL_FILTER, TTFT_TARGET, REQUEST_CLASS),
            DECISION_DETAIL,
        )
    )
)
"""What a page may send: what engines, the router and OpenAI's and Anthropic's SDKs know."""

_ANY_LIMITS = dict.fromkeys(("requests", "tokens"), LimitState(1, 1, 0.0))
EXPOSED_HEADERS = (
    *(REQUEST_ID, CLIENT_REQUEST_ID, "request-id", "retry-after", "x-should-retry"),
    *(
        name
        for path in ("", ANTHROPIC_PATH)
        for name, _ in describe_limits(path, _ANY_LIMITS, now=0.0)
    ),
    *(DECISION, DECISION_DETAIL, SESSION_ID, CHOSEN_PROFILE, ROUTING_STRATEGY),
    *("target-pod", "target-pod-ip", "prefill-target-pod", "prefill-target-pod-ip"),
)
"""What a page may read of an answer."""

_FILTER = "envoy.filters.http.cors"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\*\.)?[^/*?#@\s]+", re.IGNORECASE)


def check_origins(origins: tuple[str, ...], *, credentials: bool) -> None:
    """Checks who may call.

    Raises:
        ValueError: If an origin is none, or any page whatsoever may act as its user.
    """
    for origin in origins:
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"CORS origin {origin!r} is not scheme://host[:port], such as "
                "https://chat.example.com or https://*.example.com, nor *"
            )
    if credentials and ANY_ORIGIN in origins:
        raise ValueError("CORS credentials for any origin would let any page act as its user")
    if credentials and not origins:
        raise ValueError("CORS credentials are of no use without an origin")


def build_cors_filters(origins: tuple[str, ...]) -> list[hcm.HttpFilter]:
    """Builds the filter, if any page may call: it answers preflight requests by itself."""
    if not origins:
        return []
    return [hcm.HttpFilter(name=_FILTER, typed_config=Any.pack(cors.Cors()))]


def build_cors_policy(origins: tuple[str, ...], *, credentials: bool) -> dict[str, Any]:
    """Builds what the routes say to the filter; nothing where no page may call."""
    if not origins:
        return {}
    # Without credentials a browser takes this for all names but `authorization`.
    others = () if credentials else ("*",)
    policy = cors.CorsPolicy(
        allow_origin_string_match=[_match_origin(origin) for origin in origins],
        allow_methods=", ".join(ALLOWED_METHODS),
        allow_headers=", ".join((*ALLOWED_HEADERS, *others)),
        expose_headers=", ".join(EXPOSED_HEADERS),
        max_age=str(_MAX_AGE_S),
        allow_credentials=credentials,
        # Another page's are answered too, without leave: the router would say that the method is
        # wrong.
        forward_not_matching_preflights=False,
    )
    return {_FILTER: Any.pack(policy)}


def _match_origin(origin: str) -> matcher.StringMatcher:
    if "*" not in origin:
        return matcher.StringMatcher(exact=origin.lower())
    pattern = ".*" if origin == ANY_ORIGIN else re.escape(origin.lower()).replace(r"\*", "[^/:]+")
    return matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=pattern))
