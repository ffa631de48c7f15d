"""Which profile and which strategy a request gets."""

import pytest
from factories import make_pod

from pdrouter.cluster.pod_config import Profile, parse_config
from pdrouter.cluster.pods import Pod
from pdrouter.routing.profiles import ResolvedProfile, resolve_profile, resolve_strategy_name

CONFIG = """{"lockedRoutingStrategy": "%s", "defaultProfile": "%s", "profiles": {
    "default": {"routingStrategy": "random"},
    "long": {"routingStrategy": "pd", "routingConfig": {"promptTokensGte": 100}},
    "Auto": {"routingStrategy": "never by this name"}}}"""


def make_configured(locked: str = "", default: str = "") -> Pod:
    return make_pod(config=parse_config(CONFIG % (locked, default)))


@pytest.mark.parametrize(
    ("requested", "prompt", "name", "automatic"),
    [
        ("", 5, "default", False),
        ("long", 5, "long", False),
        (" long ", 5, "long", False),
        ("unknown", 5, "default", False),
        ("auto", 100, "long", True),
        (" AUTO ", 100, "long", True),
        ("Auto", 99, "default", True),
    ],
)
def test_a_request_gets_the_profile_that_it_asks_for(
    requested: str, prompt: int, name: str, automatic: bool
) -> None:
    pod = make_configured()
    assert pod.config is not None
    resolved = resolve_profile(pod.config, requested, prompt, None)
    assert resolved == ResolvedProfile(name, pod.config.profiles[name], "", automatic)


def test_without_a_configuration_nothing_is_asked_for() -> None:
    assert resolve_profile(None, "auto", 1, None) == ResolvedProfile()


@pytest.mark.parametrize("requested", ["", "unknown", "auto"])
def test_the_lock_holds_even_where_the_default_profile_is_missing(requested: str) -> None:
    resolved = resolve_profile(make_configured("pd", "gone").config, requested, 1, None)
    assert (resolved.name, resolved.locked_strategy) == ("gone", "pd")
    assert resolved.profile == Profile()


@pytest.mark.parametrize(
    ("locked", "header", "profile", "default", "name"),
    [
        ("a", "b", "c", "d", "a"),
        ("", "b", "c", "d", "b"),
        ("", " b ", "c", "d", "b"),
        ("", "  ", "c", "d", "c"),
        ("", "", "c", "d", "c"),
        ("", "", "", "d", "d"),
        ("", "", "", "", None),
        ("", "", "", None, None),
    ],
)
def test_lock_header_profile_and_setting_name_the_strategy_in_this_order(
    locked: str, header: str, profile: str, default: str | None, name: str | None
) -> None:
    resolved = ResolvedProfile("x", Profile(profile), locked)
    assert resolve_strategy_name(resolved, header, default) == name
