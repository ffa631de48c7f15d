"""Users with keys and limits, through the real Envoy, with the OpenAI SDK and as Anthropic's do."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import yaml
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    engines_of,
    eventually,
    expect_error,
    read_admin,
    read_metrics,
    run_checked_stack,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.users.keys import digest_key
from pdrouter.users.local_counters import LocalCounters

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
LIMITS: dict[str, dict[str, Any]] = {
    "free": {},
    "slow": {"requests_per_minute": 3},
    "brief": {"requests_per_minute": 2},
    "burst": {"requests_per_minute": 10},
    "thrifty": {"tokens_per_minute": 10_000},
    "single": {"concurrent_requests": 1},
    "leaver": {"concurrent_requests": 1},
}


def key_of(user: str) -> str:
    return f"sk-test-{user}-0123456789"


def write_users(file: Path, *more: dict[str, Any]) -> None:
    """Write the file of users in one step, as it is read while it is written."""
    users = [
        {"name": name, "keys": [digest_key(key_of(name))], "limits": limits}
        for name, limits in LIMITS.items()
    ]
    users.append({"name": "picky", "keys": [digest_key(key_of("picky"))], "models": ["other-*"]})
    temporary = file.with_suffix(".new")
    temporary.write_text(yaml.safe_dump({"users": [*users, *more]}))
    temporary.replace(file)


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("users") / "users.yaml"
    write_users(file)
    return file


@pytest.fixture(scope="module")
def stack_options(users_file: Path) -> StackOptions:
    environment = {"PDROUTER_API_KEYS_FILE": str(users_file)}
    return StackOptions(prefill=PREFILL, decode=DECODE, environment=environment)


@pytest_asyncio.fixture(loop_scope="module")
async def sdks(stack: LocalStack) -> AsyncIterator["Sdks"]:
    opened = Sdks(stack)
    yield opened
    for sdk in opened.opened:
        await sdk.close()


class Sdks:
    """The SDK, once for each user."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self.opened: list[openai.AsyncOpenAI] = []

    def of(self, user: str) -> openai.AsyncOpenAI:
        url, key = f"{self._stack.url}/v1", key_of(user)
        sdk = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
        self.opened.append(sdk)
        return sdk


def as_user(user: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(user)}"}


async def test_answers_say_what_is_left_and_a_429_when_to_come_again(sdks: Sdks) -> None:
    create = sdks.of("slow").chat.completions.with_raw_response.create
    left = []
    for _ in range(3):
        response = await create(**chat())
        left.append(response.headers["x-ratelimit-remaining-requests"])
        assert response.headers["x-ratelimit-limit-requests"] == "3"
        assert response.parse().choices
    assert left == ["2", "1", "0"]
    with pytest.raises(openai.RateLimitError) as raised:
        await create(**chat())
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.type == "rate_limit_error"
    assert "user 'slow' may have 3 requests per minute" in str(raised.value)
    assert 0 < int(raised.value.response.headers["retry-after"]) <= 61
    assert raised.value.response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_without_a_known_key_nobody_gets_in(stack: LocalStack, sdks: Sdks) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        await sdks.of("stranger").chat.completions.create(**chat())
    assert raised.value.code == "invalid_api_key"
    async with connect(stack) as client:
        for path in (CHAT, MESSAGES):
            expect_error(await client.post(path, json=chat()), 401, "invalid_api_key", "api_key")
        assert (await client.get("/health")).status_code == 200


async def test_a_user_sees_and_uses_the_models_that_one_may(sdks: Sdks) -> None:
    with pytest.raises(openai.PermissionDeniedError) as raised:
        await sdks.of("picky").chat.completions.create(**chat())
    assert (raised.value.code, raised.value.param) == ("model_not_allowed", "model")
    assert raised.value.type == "permission_error"
    assert [model.id async for model in sdks.of("picky").models.list()] == []
    assert [model.id async for model in sdks.of("free").models.list()] == ["demo"]


async def test_anthropics_clients_are_answered_as_they_expect(client: httpx.AsyncClient) -> None:
    headers = {"x-api-key": key_of("brief")}
    for left in ("1", "0"):
        response = await client.post(MESSAGES, json=chat(), headers=headers)
        assert response.status_code == 200
        assert response.headers["anthropic-ratelimit-requests-remaining"] == left
        assert response.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    response = await client.post(MESSAGES, json=chat(), headers=headers)
    error = expect_error(response, 429, "rate_limit_exceeded")
    assert error["type"] == "rate_limit_error"
    assert response.headers["retry-after"]


async def test_of_many_at_once_as_many_pass_as_the_limit_says(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(
        *(client.post(CHAT, json=chat(), headers=as_user("burst")) for _ in range(40))
    )
    statuses = [response.status_code for response in responses]
    assert (statuses.count(200), statuses.count(429)) == (10, 30)


async def test_tokens_count_as_they_were_used(client: httpx.AsyncClient) -> None:
    async def ask(**members: Any) -> tuple[int, dict[str, Any] | None]:
        body = chat(**members)
        response = await client.post(CHAT, json=body, headers=as_user("thrifty"))
        assert response.status_code == 200
        left = int(response.headers["x-ratelimit-remaining-tokens"])
        return left, None if members.get("stream") else response.json()["usage"]

    first, usage = await ask(max_tokens=40)
    assert usage is not None
    assert usage["completion_tokens"] == 40
    second, _ = await ask(max_tokens=40)
    # The same was taken of both at first; what counts of the first is what it has used.
    taken = 10_000 - first
    assert second == 10_000 - usage["total_tokens"] - taken
    third, _ = await ask(max_tokens=40, stream=True, stream_options={"include_usage": True})
    fourth, _ = await ask(max_tokens=40)
    assert third - fourth == usage["total_tokens"] == second - third
    # Without usage, what was taken stays: a guess, which learns with each answer.
    fifth, _ = await ask(max_tokens=40, stream=True)
    sixth, _ = await ask(max_tokens=40)
    assert abs(fifth - sixth - taken) <= 2


async def test_tokens_count_as_envoys_log_reports_them(stack_options: StackOptions) -> None:
    environment = {**stack_options.environment, "PDROUTER_OBSERVE_TOKENS": "access-log"}
    options = replace(stack_options, environment=environment, token_accounting=True)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        used = 0
        for _ in range(3):
            body = chat(max_tokens=400)
            response = await client.post(CHAT, json=body, headers=as_user("thrifty"))
            used += response.json()["usage"]["total_tokens"]
        left = int(response.headers["x-ratelimit-remaining-tokens"])
        counted = stack.router._exchanges.gate._counters
        assert isinstance(counted, LocalCounters)

        async def expect_used() -> None:
            assert counted._windows.count("user/thrifty/tokens", 60.0) == used

        assert 10_000 - left != used
        await eventually(expect_used)


async def test_who_asks_for_one_thing_after_another_is_not_kept_waiting(
    client: httpx.AsyncClient,
) -> None:
    for number in range(20):
        body = chat(stream=bool(number % 2))
        response = await client.post(CHAT, json=body, headers=as_user("single"))
        assert response.status_code == 200, response.text


async def test_a_client_that_leaves_gives_its_place_back(client: httpx.AsyncClient) -> None:
    headers = as_user("leaver")
    body = chat(stream=True, max_tokens=20_000)
    async with client.stream("POST", CHAT, json=body, headers=headers) as stream:
        assert stream.status_code == 200
        pieces = stream.aiter_bytes()
        assert await anext(pieces)
        response = await client.post(CHAT, json=chat(), headers=headers)
        expect_error(response, 429, "rate_limit_exceeded")
        assert "user 'leaver' may have 1 requests at a time" in response.text
        assert response.headers["retry-after"] == "1"

    async def expect_place() -> None:
        answer = await client.post(CHAT, json=chat(), headers=headers)
        assert answer.status_code == 200

    await eventually(expect_place)


async def test_keys_show_nowhere_and_come_to_no_engine(
    stack: LocalStack, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    response = await client.post(CHAT, json=chat(), headers=as_user("free"))
    assert response.status_code == 200
    key = key_of("free")
    pages = [(await read_admin(stack, path)).text for path in ("/debug/state", "/debug/decisions")]
    pages.append((await read_admin(stack, "/metrics")).text)
    lines = "\n".join(f"{vars(record)}" for record in caplog.records)
    assert "'user': 'free'" in lines
    for shown in (*pages, lines, response.text, str(response.headers)):
        assert key not in shown
        assert digest_key(key) not in shown
    received = [request for engine in engines_of(stack) for request in engine.requests]
    assert received
    assert not any(key in str(request.headers) for request in received)


async def test_users_are_counted_by_name(stack: LocalStack, client: httpx.AsyncClient) -> None:
    before = await read_metrics(stack)
    await client.post(CHAT, json=chat(), headers=as_user("free"))

    async def expect_counts() -> None:
        metrics = await read_metrics(stack)
        name = "pdrouter_user_requests_total"
        counted = metrics.total(name, user="free", status="200")
        assert counted == before.total(name, user="free", status="200") + 1

    await eventually(expect_counts)


async def test_a_changed_file_counts_without_a_restart(
    stack: LocalStack, client: httpx.AsyncClient, users_file: Path
) -> None:
    headers = {"api-key": key_of("new")}

    async def expect_status(status: int) -> None:
        assert (await client.post(CHAT, json=chat(), headers=headers)).status_code == status

    await expect_status(401)
    write_users(users_file, {"name": "new", "keys": [digest_key(key_of("new"))]})
    await eventually(lambda: expect_status(200))
    write_users(users_file, {"name": "new", "keys": ["sk-plain-key-in-the-file"]})

    async def expect_broken() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_keys_reloads_total", result="broken") == 1

    await eventually(expect_broken)
    await expect_status(200)
    write_users(users_file)
    await eventually(lambda: expect_status(401))
