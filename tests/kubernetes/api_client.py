"""A plain HTTP client of an API server: status codes and bodies as they are."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from fakekube import FakeApiServer

PODS = "/api/v1/pods"
DEFAULT_PODS = "/api/v1/namespaces/default/pods"

Json = dict[str, Any]


class ApiClient:
    """Requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def get(self, path: str, accept: str = "", **query: str) -> tuple[int, Any]:
        """The status and the body of a GET request, parsed if it is JSON."""
        return await self.send("GET", path, accept=accept, **query)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "",
        **query: str,
    ) -> tuple[int, Any]:
        """The status and the body of a request, parsed if it is JSON."""
        headers = {"Accept": accept or "application/json", "Content-Type": content_type}
        content = None if body is None else json.dumps(body)
        async with self._session.request(
            method, self._url + path, params=query, data=content, headers=headers
        ) as response:
            content_type, text = response.content_type, await response.text()
            return response.status, json.loads(text) if content_type.endswith("json") else text

    @asynccontextmanager
    async def watch(
        self, path: str = PODS, accept: str = "application/json", **query: str
    ) -> AsyncIterator["Events"]:
        """The events of a watch."""
        query = {"watch": "true", **query}
        headers = {"Accept": accept}
        async with self._session.get(self._url + path, params=query, headers=headers) as response:
            yield Events(response)


class Events:
    """The stream of one watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._lines = response.content
        self.status = response.status

    async def next(self) -> Json | None:
        """The next event; None at the end of the stream."""
        line = await self._lines.readline()
        return json.loads(line) if line else None

    async def rest(self) -> list[Json]:
        """All events until the end of the stream."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events


@asynccontextmanager
async def connect(api: FakeApiServer) -> AsyncIterator[ApiClient]:
    """A client whose every read has a limit."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield ApiClient(session, api.url)


def names(listed: Json) -> list[str]:
    """The names of the objects in a list."""
    return [item["metadata"]["name"] for item in listed["items"]]


def summary(event: Json | None) -> tuple[str, str]:
    """The type of an event and the name of its object; a bookmark has no name."""
    assert event is not None
    return event["type"], event["object"]["metadata"].get("name", "")
