"""Which profile of a model's configuration a request gets, and which strategy follows from it."""

from collections.abc import Iterable
from dataclasses import dataclass

from pdrouter.cluster.pod_config import AUTO, Profile
from pdrouter.cluster.pods import Pod

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


_UNCONFIGURED = ResolvedProfile()


def resolve_profile(
    pods: Iterable[Pod], requested: str, prompt_tokens: int, max_tokens: int | None
) -> ResolvedProfile:
    """Return the profile for a request.

    Args:
        pods: the model's pods: the first ready one that has a configuration speaks for all.
        requested: the `config-profile` header: a name, `auto`, or nothing.
        prompt_tokens: length of the prompt, as estimated.
        max_tokens: limit of the answer's length; None if the request sets none.
    """
    configs = [(pod.ready, pod.config) for pod in pods if pod.config is not None]
    # A pod that terminates has yesterday's.
    ready = (config for is_ready, config in configs if is_ready)
    config = next(ready, configs[0][1] if configs else None)
    if config is None:
        return _UNCONFIGURED
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
