"""Where a Redis server is: what a URL says, what goes together, and that no password shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.settings import SettingInvalid, Settings, list_settings
from pdrouter.settings.redis_url import RedisUrl, Topology, parse_redis_url

SENTINEL, CLUSTER = Topology.SENTINEL, Topology.CLUSTER


def load(**environment: str) -> Settings:
    return Settings.load(environment, {})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://r", RedisUrl((("r", 6379),))),
        ("redis://r:1/", RedisUrl((("r", 1),))),
        ("valkey://10.0.0.1:7000/3", RedisUrl((("10.0.0.1", 7000),), database=3)),
        ("REDISS://[fd00::1]:6380", RedisUrl((("fd00::1", 6380),), tls=True)),
        ("valkeys://[::1]", RedisUrl((("::1", 6379),), tls=True)),
        ("redis://:p%40ss@r", RedisUrl((("r", 6379),), password="p@ss")),
        ("redis://ann:a%3Ab@r", RedisUrl((("r", 6379),), user="ann", password="a:b")),
        # As people write it who do not escape.
        ("redis://:a@b:c@r", RedisUrl((("r", 6379),), password="a@b:c")),
        (
            "redis+sentinel://:p@a,b:1/shared/2",
            RedisUrl((("a", 26379), ("b", 1)), SENTINEL, False, "", "p", 2, "shared"),
        ),
        ("rediss+sentinel://a/m", RedisUrl((("a", 26379),), SENTINEL, tls=True, master="m")),
        ("redis+cluster://a:1,b", RedisUrl((("a", 1), ("b", 6379)), CLUSTER)),
        ("valkeys+cluster://a", RedisUrl((("a", 6379),), CLUSTER, tls=True)),
    ],
)
def test_a_url_says_where_the_server_is(text: str, url: RedisUrl) -> None:
    assert parse_redis_url(text) == url
    assert parse_redis_url(url.write()) == url


@pytest.mark.parametrize(
    "text",
    [
        *("r", "r:6379", "http://r", "redis:r", "redis://", "redis://:1", "redis://r:0"),
        *("redis://r:65536", "redis://r:x", "redis://r/x", "redis://r/-1", "redis://r/0/1"),
        *("redis://a,b", "redis+sentinel://a", "redis+sentinel://a/", "redis+cluster://a/1"),
        *("redis+other://a", "rediss+://a?x", "redis://r?ssl_cert_reqs=none", "redis://r#1"),
        *("redis://[::1", "redis+cluster://a,", "redis+sentinel://a/m/x"),
    ],
)
def test_what_is_no_url_is_refused_and_its_password_is_not_told(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is not shown
        parse_redis_url(text)
    with pytest.raises(SettingInvalid, match=r"PDROUTER_REDIS_URL=\(secret\) is not allowed"):
        load(PDROUTER_REDIS_URL=text)


@given(st.text(), st.text(), st.integers(0, 15))
def test_what_is_written_says_the_same_whatever_the_password(
    user: str, password: str, database: int
) -> None:
    url = RedisUrl((("r", 6379),), Topology.SINGLE, True, user, password, database)
    assert parse_redis_url(url.write()) == url
    assert url.describe() == "rediss://r:6379" + (f"/{database}" if database else "")


def test_aibrix_variables_name_a_server() -> None:
    assert load().redis is None
    assert load(REDIS_HOST="r").redis == RedisUrl((("r", 6379),))
    given = load(REDIS_HOST="r", REDIS_PORT="7000", REDIS_PASSWORD="p w/%41")
    assert given.redis == RedisUrl((("r", 7000),), password="p w/%41")
    both = load(REDIS_HOST="r", PDROUTER_REDIS_URL="redis://ours")
    assert both.redis == RedisUrl((("ours", 6379),))
    # What Kubernetes sets for a Service called `redis` names none.
    assert load(REDIS_PORT="tcp://10.0.0.1:6379", REDIS_PASSWORD="x").redis is None


URL, FILE = "PDROUTER_REDIS_URL", "PDROUTER_REDIS_PASSWORD_FILE"
SENTINEL_FILE = "PDROUTER_REDIS_SENTINEL_PASSWORD_FILE"


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({FILE: "f"}, FILE),
        ({FILE: "f", URL: "redis://:p@r"}, FILE),
        ({FILE: "f", "REDIS_HOST": "r", "REDIS_PASSWORD": "p"}, FILE),
        ({"PDROUTER_REDIS_CA": "c"}, "PDROUTER_REDIS_CA"),
        ({"PDROUTER_REDIS_CA": "c", URL: "redis://r"}, "PDROUTER_REDIS_CA"),
        (
            {"PDROUTER_REDIS_CERTIFICATE": "c", "PDROUTER_REDIS_KEY": "k", URL: "redis://r"},
            "PDROUTER_REDIS_CERTIFICATE",
        ),
        ({"PDROUTER_REDIS_CERTIFICATE": "c", URL: "rediss://r"}, "go together"),
        ({"PDROUTER_REDIS_KEY": "k", URL: "rediss://r"}, "go together"),
        ({SENTINEL_FILE: "f", URL: "redis://r"}, SENTINEL_FILE),
    ],
)
def test_what_does_not_go_together_is_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingInvalid, match=problem):
        load(**environment)


@pytest.mark.parametrize(
    "environment",
    [
        {FILE: "f", URL: "redis://ann@r"},
        {FILE: "f", "REDIS_HOST": "r"},
        {"PDROUTER_REDIS_CA": "c", URL: "rediss+cluster://r"},
        {"PDROUTER_REDIS_CERTIFICATE": "c", "PDROUTER_REDIS_KEY": "k", URL: "rediss://r"},
        {SENTINEL_FILE: "f", URL: "redis+sentinel://:p@r/m"},
    ],
)
def test_what_goes_together(environment: dict[str, str]) -> None:
    load(**environment)


def test_no_password_shows() -> None:
    environment = {URL: "redis://ann:hunter2@r", "REDIS_HOST": "h", "REDIS_PASSWORD": "hunter3"}
    settings = load(**environment)
    shown = f"{settings!r} {settings.redis!r} {settings.show()}"
    shown += str(list(list_settings(settings, environment, {})))
    assert "hunter" not in shown
    assert settings.redis is not None
    assert settings.redis.describe() == "redis://r:6379"


@pytest.mark.parametrize(
    ("environment", "source"),
    [
        ({}, "keys"),
        # A router that takes the place of aibrix's plugin knows users as that did.
        ({"REDIS_HOST": "r"}, "aibrix"),
        ({"REDIS_HOST": "r", "PDROUTER_USERS": "keys"}, "keys"),
        ({"REDIS_HOST": "r", "PDROUTER_USERS": "header"}, "header"),
        ({"REDIS_HOST": "r", "PDROUTER_API_KEYS_FILE": "f"}, "keys"),
        ({"REDIS_HOST": "r", "PDROUTER_API_KEYS_FILE": "f", "PDROUTER_USERS": "aibrix"}, "aibrix"),
        ({"REDIS_HOST": "r", URL: "redis://ours"}, "keys"),
        ({URL: "redis://ours"}, "keys"),
        ({URL: "redis://ours", "PDROUTER_USERS": "aibrix"}, "aibrix"),
    ],
)
def test_how_users_are_known(environment: dict[str, str], source: str) -> None:
    assert load(**environment).user_source == source


def test_aibrix_users_need_a_server() -> None:
    with pytest.raises(SettingInvalid, match="PDROUTER_USERS=aibrix needs"):
        load(PDROUTER_USERS="aibrix")
