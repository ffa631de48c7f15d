"""Which profile of a model's configuration a request gets, and which strategy follows from it."""

from dataclasses import dataclass

from pdrouter.cluster.pod_config import AUTO, PodConfig, Profile

_NO_PROFILE = Profile()


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """What a model's configuration says of one request.

    Attributes:
        name: name of the profile; empty where no pod has a configuration.
        profile: the profile; one that asks for nothing where there is none.
        locked_strategy: name of the strategy that the request cannot change; empty for none.
        automatic: whether the router chose the profile, so that the client should learn its name.
    """

    name: str = ""
    profile: Profile = _NO_PROFILE
    locked_strategy: str = ""
    automatic: bool = False


UNCONFIGURED = ResolvedProfile()
"""Of a model without a configuration."""


def resolve_profile(
    config: PodConfig | None, requested: str, prompt_tokens: int, max_tokens: int | None
) -> ResolvedProfile:
    """Return the profile for a request.

    Args:
        config: the model's configuration; None for none.
        requested: the `config-profile` header: a name, `auto`, or nothing.
        prompt_tokens: length of the prompt, as estimated.
        max_tokens: limit of the answer's length; None if the request sets none.
    """
    if config is None:
        return UNCONFIGURED
    name = requested.strip()
    automatic = name.lower() == AUTO
    if automatic:
        name = config.choose_profile(prompt_tokens, max_tokens)
    if name not in config.profiles:
        name = config.default_profile
    profile = config.profiles.get(name, _NO_PROFILE)
    return ResolvedProfile(name, profile, config.locked_strategy, automatic)


def resolve_strategy_name(
    resolved: ResolvedProfile, requested: str, default: str | None
) -> str | None:
    """Return the name of the strategy for a request; None if nobody names one.

    Args:
        resolved: the profile of the request.
        requested: the `routing-strategy` header, or nothing.
        default: the router's own setting.
    """
    return (
        resolved.locked_strategy
        or requested.strip()
        or resolved.profile.routing_strategy
        or default
        or None
    )
