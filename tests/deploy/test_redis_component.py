"""The component `redis`: the router finds the server and its password, and may reach it."""

from pathlib import PurePosixPath

from manifests import compose, container, find, settings_of


def test_the_router_asks_the_server_with_the_password_of_the_secret() -> None:
    deployment = find(compose(["redis"]), "Deployment")
    settings = settings_of(deployment)
    assert settings.redis is not None
    assert settings.redis.describe() == "redis://redis:6379"
    assert settings.redis_password_file is not None
    mounts = {
        PurePosixPath(each["mountPath"]): each["name"]
        for each in container(deployment)["volumeMounts"]
    }
    volume = mounts[PurePosixPath(settings.redis_password_file.parent)]
    volumes = {each["name"]: each for each in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes[volume]["secret"] == {"secretName": "pdrouter-redis"}


def test_the_policy_lets_the_router_find_the_server_and_reach_it() -> None:
    rules = find(compose(["network-policy", "redis"]), "NetworkPolicy")["spec"]["egress"]
    ports = [port["port"] for rule in rules for port in rule.get("ports", ())]
    settings = settings_of(find(compose(["redis"]), "Deployment"))
    assert settings.redis is not None
    assert settings.redis.addresses[0][1] in ports
    assert 53 in ports


def test_without_the_policy_nothing_is_restricted() -> None:
    assert [one for one in compose(["redis"]) if one["kind"] == "NetworkPolicy"] == []
