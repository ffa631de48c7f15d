"""What goes wrong with the fake server when a test says so."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from api_client import PODS, ApiClient, connect, names, summary
from certificates import issue
from fakekube import Certificate, FakeApiServer, make_pod

LOST = (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as running:
        running.store.create(make_pod("a"))
        yield running


@pytest_asyncio.fixture
async def http(api: FakeApiServer) -> AsyncIterator[ApiClient]:
    async with connect(api) as connected:
        yield connected


def version(api: FakeApiServer) -> str:
    return str(api.store.resource_version)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (410, "Expired"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
async def test_so_many_requests_fail_as_asked_for(
    api: FakeApiServer, http: ApiClient, code: int, reason: str
) -> None:
    api.faults.fail(code, verb="list", resource="pods", times=2)
    answers = [await http.get(PODS) for _ in range(3)]
    assert [status for status, _ in answers] == [code, code, 200]
    assert (answers[0][1]["reason"], answers[0][1]["status"]) == (reason, "Failure")


async def test_a_fault_hits_only_the_requests_that_it_names(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.faults.fail(503, verb="watch", times=None)
    assert (await http.get(PODS))[0] == 200
    assert [(await http.get(PODS, watch="1"))[0] for _ in range(2)] == [503, 503]
    api.faults.clear()
    async with http.watch() as events:
        assert summary(await events.next()) == ("ADDED", "a")
    assert (api.count("list", "pods"), api.count("watch", "pods")) == (1, 3)


async def test_a_throttled_client_is_told_when_to_come_back(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.faults.fail(429, retry_after=7)
    async with aiohttp.ClientSession() as session, session.get(api.url + PODS) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
        assert (await response.json())["details"]["retryAfterSeconds"] == 7


async def test_a_hanging_request_is_never_answered_and_holds_up_no_other(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.faults.hang(verb="list")
    hanging = asyncio.ensure_future(http.get(PODS))
    await until(lambda: api.count("list") == 1)
    assert (await http.get(PODS))[0] == 200
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


async def test_a_slow_request_is_answered_after_others(api: FakeApiServer, http: ApiClient) -> None:
    api.faults.delay(1, verb="list")
    slow = asyncio.ensure_future(http.get(PODS))
    await until(lambda: api.count("list") == 1)
    assert (await http.get(PODS))[0] == 200
    assert not slow.done()
    assert (await slow)[0] == 200


@pytest.mark.parametrize("after_bytes", [0, 100])
async def test_an_answer_is_cut_in_the_middle(
    api: FakeApiServer, http: ApiClient, after_bytes: int
) -> None:
    api.faults.cut(after_bytes=after_bytes, verb="list")
    with pytest.raises(LOST):
        await http.get(PODS)
    assert (await http.get(PODS))[0] == 200


async def test_a_watch_is_cut_in_the_middle_of_an_event(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.faults.cut(after_bytes=50, verb="watch")
    with pytest.raises((*LOST, ValueError)):
        async with http.watch() as events:
            await events.rest()
    await until(lambda: len(api.watches) == 0)


async def test_open_watches_are_reset(api: FakeApiServer, http: ApiClient) -> None:
    async with http.watch() as events:
        assert summary(await events.next()) == ("ADDED", "a")
        assert len(api.watches) == 1
        api.watches.abort()
        with pytest.raises(LOST):
            await events.next()
    await until(lambda: len(api.watches) == 0)


async def test_half_an_event_may_precede_the_reset(api: FakeApiServer, http: ApiClient) -> None:
    async with http.watch(resourceVersion=version(api)) as events:
        api.watches.abort(partial=b'{"type":"ADD')
        with pytest.raises((*LOST, json.JSONDecodeError)):
            await events.next()
        with pytest.raises(LOST):
            await events.next()


async def test_open_watches_end_in_order_after_what_they_have_to_tell(
    api: FakeApiServer, http: ApiClient
) -> None:
    async with http.watch(resourceVersion=version(api)) as events:
        api.store.create(make_pod("b"))
        api.watches.close()
        assert [summary(event) for event in await events.rest()] == [("ADDED", "b")]


@pytest.mark.parametrize(("code", "reason"), [(410, "Expired"), (500, "InternalError")])
async def test_open_watches_end_with_an_error_event(
    api: FakeApiServer, http: ApiClient, code: int, reason: str
) -> None:
    async with http.watch(resourceVersion=version(api)) as events:
        api.watches.fail(code)
        [event] = await events.rest()
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (code, reason)


async def test_a_frozen_watch_stays_open_and_silent_while_new_ones_work(
    api: FakeApiServer, http: ApiClient
) -> None:
    start = version(api)
    async with http.watch(resourceVersion=start, timeoutSeconds="1") as frozen:
        api.watches.freeze()
        api.store.create(make_pod("b"))
        silence = asyncio.ensure_future(frozen.next())
        async with http.watch(resourceVersion=start) as events:
            assert summary(await events.next()) == ("ADDED", "b")
            assert len(api.watches) == 2
        assert not silence.done()
        api.watches.abort()
        with pytest.raises(LOST):
            await silence


async def test_a_restart_resets_connections_and_forgets_what_watches_could_start_from(
    api: FakeApiServer, http: ApiClient
) -> None:
    start, port = version(api), api.port
    async with http.watch(resourceVersion=start) as events:
        api.store.create(make_pod("b"))
        assert summary(await events.next()) == ("ADDED", "b")
        await api.stop()
        with pytest.raises(LOST):
            await events.next()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(PODS)
    await api.restart()
    assert api.port == port
    async with http.watch(resourceVersion=start) as events:
        [event] = await events.rest()
        assert event["object"]["code"] == 410
    _, exact = await http.get(PODS, resourceVersion=start, resourceVersionMatch="Exact")
    assert names(exact) == ["a"]
    async with http.watch(resourceVersion=version(api)) as events:
        api.store.create(make_pod("c"))
        assert summary(await events.next()) == ("ADDED", "c")


async def test_a_restart_does_not_wait_for_hanging_requests(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.faults.hang()
    hanging = asyncio.ensure_future(http.get(PODS))
    await until(lambda: api.count() == 1)
    async with asyncio.timeout(4):
        await api.restart()
    with pytest.raises(LOST):
        await hanging


async def test_after_a_restored_backup_the_newest_versions_are_yet_to_come(
    api: FakeApiServer, http: ApiClient
) -> None:
    backup = api.store.resource_version
    api.store.create(make_pod("b"))
    newest = version(api)
    await api.roll_back(backup)
    _, listed = await http.get(PODS)
    assert names(listed) == ["a"]
    assert listed["metadata"]["resourceVersion"] == str(backup)
    async with http.watch(resourceVersion=newest, timeoutSeconds="1") as events:
        api.store.create(make_pod("c"))
        assert await events.rest() == []


async def test_a_rotated_token_shuts_out_the_old_one() -> None:
    async with FakeApiServer(token="first") as api:
        url = api.url + PODS
        async with aiohttp.ClientSession() as session:

            async def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                async with session.get(url, headers=headers) as response:
                    return response.status

            assert [await status("first"), await status("second"), await status("")] == [
                200,
                401,
                401,
            ]
            api.token = "second"
            assert [await status("first"), await status("second")] == [401, 200]


async def test_a_restart_may_show_a_certificate_of_another_authority(tmp_path: Path) -> None:
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new")

    async with FakeApiServer(certificate=old) as api, aiohttp.ClientSession() as session:

        async def status(trusted: Certificate) -> int:
            context = ssl.create_default_context(cafile=str(trusted.ca))
            async with session.get(api.url + PODS, ssl=context) as response:
                return response.status

        assert api.url.startswith("https://")
        assert await status(old) == 200
        await api.restart(certificate=new)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await status(old)
        assert await status(new) == 200


async def test_thousands_of_pods_are_stored_and_listed(api: FakeApiServer, http: ApiClient) -> None:
    for n in range(5_000):
        api.store.create(make_pod(f"pod-{n:04}", labels={"role-name": "decode"}))
    found, query = 0, {"limit": "500", "labelSelector": "role-name in (prefill,decode)"}
    while True:
        _, page = await http.get(PODS, **query)
        found += len(page["items"])
        if "continue" not in page["metadata"]:
            break
        query["continue"] = page["metadata"]["continue"]
    assert (found, api.count("list", "pods", limit="500")) == (5_000, 10)
