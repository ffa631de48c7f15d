"""What the fake server's watches send, and when they end."""

from collections.abc import AsyncIterator
from typing import Literal

import pytest
import pytest_asyncio
from api_client import PODS, ApiClient, Events, connect, summary
from fakekube import FakeApiServer, make_pod

SELECTOR = "role-name in (prefill,decode)"
PREFILL = {"role-name": "prefill"}
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as running:
        yield running


@pytest_asyncio.fixture
async def http(api: FakeApiServer) -> AsyncIterator[ApiClient]:
    async with connect(api) as connected:
        yield connected


def version(api: FakeApiServer) -> str:
    return str(api.store.resource_version)


async def seen(events: Events, count: int) -> list[tuple[str, str]]:
    return [summary(await events.next()) for _ in range(count)]


async def test_a_watch_tells_of_all_writes_after_its_version(
    api: FakeApiServer, http: ApiClient
) -> None:
    start = version(api)
    api.store.create(make_pod("a"))
    api.store.patch("pods", "a", {"metadata": {"labels": {"x": "y"}}})
    async with http.watch(resourceVersion=start) as events:
        assert await seen(events, 2) == [("ADDED", "a"), ("MODIFIED", "a")]
        api.store.create(make_pod("b"))
        api.store.delete("pods", "a", grace=0)
        added, deleted = await events.next(), await events.next()
        assert (summary(added), summary(deleted)) == (("ADDED", "b"), ("DELETED", "a"))
        assert deleted is not None
        assert deleted["object"]["metadata"]["resourceVersion"] == version(api)
        assert (deleted["object"]["apiVersion"], deleted["object"]["kind"]) == ("v1", "Pod")


@pytest.mark.parametrize("query", [{}, {"resourceVersion": "0"}, {"resourceVersion": ""}])
async def test_a_watch_from_any_version_starts_with_what_there_is(
    api: FakeApiServer, http: ApiClient, query: dict[str, str]
) -> None:
    api.store.create(make_pod("a"))
    api.store.patch("pods", "a", {"metadata": {"labels": {"x": "y"}}})
    async with http.watch(**query) as events:
        assert await seen(events, 1) == [("ADDED", "a")]
        api.store.create(make_pod("b"))
        assert await seen(events, 1) == [("ADDED", "b")]


@pytest.mark.parametrize("flag", ["1", "true", "True"])
async def test_go_and_python_clients_both_ask_for_a_watch(
    api: FakeApiServer, http: ApiClient, flag: str
) -> None:
    async with http.watch(watch=flag, resourceVersion=version(api)) as events:
        api.store.create(make_pod("a"))
        assert await seen(events, 1) == [("ADDED", "a")]
    assert api.count("watch", "pods") == 1


async def test_a_streamed_list_ends_with_a_marked_bookmark(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.store.create(make_pod("a"))
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with http.watch(**query) as events:
        assert await seen(events, 1) == [("ADDED", "a")]
        end = await events.next()
        assert end is not None
        metadata = end["object"]["metadata"]
        assert (end["type"], metadata["resourceVersion"]) == ("BOOKMARK", version(api))
        assert metadata["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_objects_come_and_go_with_the_labels_that_are_selected(
    api: FakeApiServer, http: ApiClient
) -> None:
    start = version(api)
    async with http.watch(resourceVersion=start, labelSelector=SELECTOR) as events:
        api.store.create(make_pod("a"))
        for role in ("prefill", "decode", "other", None):
            api.store.patch("pods", "a", {"metadata": {"labels": {"role-name": role}}})
        api.store.patch("pods", "a", {"metadata": {"labels": PREFILL}})
        assert await seen(events, 4) == [
            ("ADDED", "a"),
            ("MODIFIED", "a"),
            ("DELETED", "a"),
            ("ADDED", "a"),
        ]


@pytest.mark.parametrize(("transition", "role"), [("new", "other"), ("previous", "prefill")])
async def test_the_event_of_a_pod_that_left_the_selector_has_the_version_of_that_write(
    transition: Literal["new", "previous"], role: str
) -> None:
    async with FakeApiServer(transition=transition) as api, connect(api) as http:
        api.store.create(make_pod("a", labels=PREFILL))
        start = version(api)
        async with http.watch(resourceVersion=start, labelSelector=SELECTOR) as events:
            api.store.patch("pods", "a", {"metadata": {"labels": {"role-name": "other"}}})
            event = await events.next()
            assert event is not None
            metadata = event["object"]["metadata"]
            assert (event["type"], metadata["labels"]["role-name"]) == ("DELETED", role)
            assert metadata["resourceVersion"] == version(api)


async def test_a_watch_is_bounded_by_namespace_kind_and_field(
    api: FakeApiServer, http: ApiClient
) -> None:
    start = version(api)
    path = "/api/v1/namespaces/team/pods"
    async with http.watch(path, resourceVersion=start, fieldSelector="metadata.name=b") as events:
        api.store.create(make_pod("b"))
        api.store.create(make_pod("a", namespace="team"))
        api.store.create(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "b", "namespace": "team"},
            }
        )
        api.store.create(make_pod("b", namespace="team"))
        event = await events.next()
        assert event is not None
        assert event["object"]["metadata"]["namespace"] == "team"


async def test_a_graceful_deletion_is_told_in_three_events(http: ApiClient) -> None:
    async with FakeApiServer(termination_delay=0.01) as api, connect(api) as http:
        api.store.create(make_pod("a"))
        async with http.watch(resourceVersion=version(api)) as events:
            status, _ = await http.send("DELETE", "/api/v1/namespaces/default/pods/a")
            told = [await events.next() for _ in range(3)]
        assert status == 200
        assert [event and event["type"] for event in told] == ["MODIFIED", "MODIFIED", "DELETED"]
        assert all(event and "deletionTimestamp" in event["object"]["metadata"] for event in told)


async def test_a_watch_ends_after_its_timeout_with_a_bookmark_before(api: FakeApiServer) -> None:
    async with FakeApiServer(final_bookmarks=(0.9, 0.5)) as api, connect(api) as http:
        start = version(api)
        query = {"timeoutSeconds": "1", "allowWatchBookmarks": "true", "resourceVersion": start}
        async with http.watch(**query) as events:
            told = await events.rest()
        assert {event["type"] for event in told} == {"BOOKMARK"}
        assert told[0]["object"] == {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": start, "creationTimestamp": None},
            "spec": {"containers": None},
            "status": {},
        }


async def test_bookmarks_come_at_intervals_to_those_who_allow_them(api: FakeApiServer) -> None:
    async with FakeApiServer(bookmark_interval=0.05) as api, connect(api) as http:
        start = version(api)
        async with (
            http.watch(resourceVersion=start, allowWatchBookmarks="true") as events,
            http.watch(resourceVersion=start) as plain,
        ):
            assert await seen(events, 1) == [("BOOKMARK", "")]
            other_kind = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
            api.store.create(other_kind)
            latest = await events.next()
            assert latest is not None
            assert latest["object"]["metadata"]["resourceVersion"] == version(api)
            api.store.create(make_pod("a"))
            assert await seen(plain, 1) == [("ADDED", "a")]


async def test_a_version_that_is_too_old_is_an_error_event(
    api: FakeApiServer, http: ApiClient
) -> None:
    start = version(api)
    api.store.create(make_pod("a"))
    api.store.compact()
    async with http.watch(resourceVersion=start) as events:
        [event] = await events.rest()
        assert events.status == 200
    assert event["type"] == "ERROR"
    assert event["object"]["status"] == "Failure"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    async with http.watch(resourceVersion=version(api)) as events:
        api.store.create(make_pod("b"))
        assert await seen(events, 1) == [("ADDED", "b")]


async def test_a_version_yet_to_come_is_silence_until_the_timeout() -> None:
    async with FakeApiServer(bookmark_interval=0.1) as api, connect(api) as http:
        query = {"resourceVersion": "999999", "timeoutSeconds": "1", "allowWatchBookmarks": "true"}
        async with http.watch(**query) as events:
            api.store.create(make_pod("a"))
            assert (events.status, await events.rest()) == (200, [])


async def test_a_version_that_is_no_number_is_a_server_error(http: ApiClient) -> None:
    status, refused = await http.get(PODS, watch="1", resourceVersion="garbage")
    assert (status, refused["kind"], refused["code"]) == (500, "Status", 500)


async def test_a_watched_table_describes_its_columns_once(
    api: FakeApiServer, http: ApiClient
) -> None:
    async with http.watch(accept=TABLE, resourceVersion=version(api)) as events:
        api.store.create(make_pod("a"))
        api.store.create(make_pod("b"))
        first, second = await events.next(), await events.next()
    assert first is not None
    assert second is not None
    assert first["object"]["columnDefinitions"][0]["name"] == "Name"
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][0] == "b"


async def test_metadata_alone_can_be_watched(api: FakeApiServer, http: ApiClient) -> None:
    async with http.watch(accept=METADATA, resourceVersion=version(api)) as events:
        api.store.create(make_pod("a"))
        event = await events.next()
    assert event is not None
    assert event["object"].keys() == {"kind", "apiVersion", "metadata"}


@pytest.mark.parametrize(
    ("accept", "kind"), [(TABLE, "Table"), (METADATA, "PartialObjectMetadata")]
)
async def test_bookmarks_have_the_form_of_the_other_events(accept: str, kind: str) -> None:
    async with FakeApiServer(bookmark_interval=0.02) as api, connect(api) as http:
        query = {"resourceVersion": version(api), "allowWatchBookmarks": "true"}
        async with http.watch(accept=accept, **query) as events:
            event = await events.next()
        assert event is not None
        assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", kind)
        assert event["object"]["metadata"]["resourceVersion"] == version(api)
