"""The annotation `model.aibrix.ai/config`: what a model's owner asks of the router."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, TypeVar

import msgspec

from pdrouter.settings.kinds import LONGEST_TARGET_S

T = TypeVar("T")
log = logging.getLogger(__name__)

AUTO = "auto"
"""Asks for the profile whose hints fit the request best."""
_DEFAULT_PROFILE = "default"
_CACHED_TEXTS = 256
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,256}")


class ConfigInvalid(ValueError):
    """The annotation cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Hints:
    """For which requests a profile is meant, if the client leaves that to the router.

    Attributes:
        prompt_tokens_gte: shortest prompt, in tokens; None for any.
        prompt_tokens_lt: length that the prompt must not reach; None for any.
        max_tokens_gte: least limit of the answer's length that the request sets; None for any.
        max_tokens_lt: limit that the request must stay below; None for any.
    """

    prompt_tokens_gte: int | None = None
    prompt_tokens_lt: int | None = None
    max_tokens_gte: int | None = None
    max_tokens_lt: int | None = None

    def match(self, prompt_tokens: int, max_tokens: int | None) -> bool:
        """Return whether a request fits; one that sets no limit fits no hint of limits."""
        return _lies_within(
            prompt_tokens, self.prompt_tokens_gte, self.prompt_tokens_lt
        ) and _lies_within(max_tokens, self.max_tokens_gte, self.max_tokens_lt)

    @property
    def precision(self) -> tuple[int, int, float, int, float]:
        """Sorts hints: of those that fit, aibrix takes the highest."""
        hints = (
            self.prompt_tokens_gte,
            self.prompt_tokens_lt,
            self.max_tokens_gte,
            self.max_tokens_lt,
        )
        return (
            sum(hint is not None for hint in hints),
            self.prompt_tokens_gte or 0,
            -float("inf") if self.prompt_tokens_lt is None else -self.prompt_tokens_lt,
            self.max_tokens_gte or 0,
            -float("inf") if self.max_tokens_lt is None else -self.max_tokens_lt,
        )


_NO_HINTS = Hints()


@dataclass(frozen=True, slots=True)
class Profile:
    """One of a model's ways to be served.

    Attributes:
        routing_strategy: name of a strategy; empty for none of its own.
        requests_per_second: limit of the model's requests; None for none.
        min_prompt_tokens: shortest prompt that the pod is meant for.
        max_prompt_tokens: longest such prompt; None for any.
        combined: whether a pod that is neither for prefill nor for decode may serve requests whole.
        prefill_policy: policy for prefill pods; empty for the usual one.
        decode_policy: policy for decode pods; empty for the usual one.
        hints: for which requests it is meant.
        ttft_target_s: seconds in which a first token is to come; None for no such target.
    """

    routing_strategy: str = ""
    requests_per_second: int | None = None
    min_prompt_tokens: int = 0
    max_prompt_tokens: int | None = None
    combined: bool = False
    prefill_policy: str = ""
    decode_policy: str = ""
    hints: Hints = _NO_HINTS
    ttft_target_s: float | None = None

    def holds(self, prompt_tokens: int) -> bool:
        """Return whether the pod is meant for a prompt of so many tokens."""
        longest = self.max_prompt_tokens
        return self.min_prompt_tokens <= prompt_tokens and (
            longest is None or prompt_tokens <= longest
        )


@dataclass(frozen=True, slots=True)
class PodConfig:
    """The annotation of one pod.

    Attributes:
        profiles: profiles by name.
        default_profile: name of the one for requests that name none, or one that is not there.
        locked_strategy: name of the strategy that no request can change; empty for none.
    """

    profiles: Mapping[str, Profile]
    default_profile: str = _DEFAULT_PROFILE
    locked_strategy: str = ""

    @property
    def combines(self) -> bool:
        """Whether any profile lets the pod serve what the pairs cannot."""
        return any(profile.combined for profile in self.profiles.values())

    def find_profile(self, name: str) -> Profile | None:
        """Return a profile by its name, or the default one; None if that is missing too."""
        return self.profiles.get(name) or self.profiles.get(self.default_profile)

    def choose_profile(self, prompt_tokens: int, max_tokens: int | None) -> str:
        """Return the name of the profile whose hints fit a request best, or the default one's."""
        fitting = [
            name
            for name, profile in sorted(self.profiles.items())
            if profile.hints != _NO_HINTS and profile.hints.match(prompt_tokens, max_tokens)
        ]
        if not fitting:
            return self.default_profile
        return max(fitting, key=lambda name: self.profiles[name].hints.precision)


class _Routing(msgspec.Struct, rename="camel"):
    prompt_len_bucket_min_length: int | None = None
    prompt_len_bucket_max_length: int | None = None
    combined: bool | None = None
    prefill_score_policy: str | None = None
    decode_score_policy: str | None = None


class _Hints(msgspec.Struct, rename="camel"):
    prompt_tokens_gte: int | None = None
    prompt_tokens_lt: int | None = None
    max_tokens_gte: int | None = None
    max_tokens_lt: int | None = None


class _Target(msgspec.Struct, rename="camel"):
    ttft_target_ms: float | None = None


class _Profile(msgspec.Struct, rename="camel"):
    routing_strategy: str | None = None
    routing_config: msgspec.Raw = msgspec.Raw(b"null")
    requests_per_second: Annotated[int, msgspec.Meta(le=10**9)] | None = None


class _Config(msgspec.Struct, rename="camel"):
    profiles: dict[str, _Profile]
    default_profile: str | None = None
    locked_routing_strategy: str | None = None


def parse_config(text: str) -> PodConfig:
    """Return what an annotation means.

    A `routingConfig` that cannot be used has its defaults, as in aibrix: its members belong to
    several readers, and none of them should fail for what was meant for another.

    Raises:
        ConfigInvalid: it is not such a JSON object, or has no profiles.
    """
    try:
        config = msgspec.json.decode(text, type=_Config)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigInvalid(str(error)) from None
    if not config.profiles:
        raise ConfigInvalid("there are no profiles")
    for name in config.profiles:
        if not _HEADER_VALUE.fullmatch(name):
            raise ConfigInvalid(f"the profile name {name[:50]!r} cannot stand in a header")
    return PodConfig(
        MappingProxyType(
            {name: _read_profile(name, profile) for name, profile in config.profiles.items()}
        ),
        config.default_profile or _DEFAULT_PROFILE,
        (config.locked_routing_strategy or "").strip(),
    )


@lru_cache(_CACHED_TEXTS)
def read_config(text: str) -> PodConfig | None:
    """Return what an annotation means; None, and a warning in the log, if it cannot be used.

    The pods of a model mostly have the same text: it is read once.
    """
    try:
        return parse_config(text)
    except ConfigInvalid as invalid:
        log.warning("an annotation model.aibrix.ai/config is ignored: %s", invalid)
        return None


def _read_profile(name: str, profile: _Profile) -> Profile:
    routing = _read_part(name, profile.routing_config, _Routing)
    hints = _read_part(name, profile.routing_config, _Hints)
    rate = profile.requests_per_second
    return Profile(
        (profile.routing_strategy or "").strip(),
        rate if rate is not None and rate > 0 else None,
        max(0, routing.prompt_len_bucket_min_length or 0),
        routing.prompt_len_bucket_max_length or None,
        bool(routing.combined),
        (routing.prefill_score_policy or "").strip().lower(),
        (routing.decode_score_policy or "").strip().lower(),
        Hints(
            hints.prompt_tokens_gte,
            hints.prompt_tokens_lt,
            hints.max_tokens_gte,
            hints.max_tokens_lt,
        ),
        _read_target(name, profile.routing_config),
    )


def _read_target(profile: str, raw: msgspec.Raw) -> float | None:
    milliseconds = _read_part(profile, raw, _Target).ttft_target_ms
    if milliseconds is None or 0 < milliseconds <= LONGEST_TARGET_S * 1000:
        return None if milliseconds is None else milliseconds / 1000
    log.warning("ttftTargetMs of profile %r is ignored: %g is out of range", profile, milliseconds)
    return None


def _read_part(profile: str, raw: msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind | None) or kind()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        log.warning("routingConfig of profile %r is ignored: %s", profile, error)
        return kind()


def _lies_within(value: int | None, lowest: int | None, limit: int | None) -> bool:
    if lowest is None and limit is None:
        return True
    return (
        value is not None
        and (lowest is None or lowest <= value)
        and (limit is None or value < limit)
    )
