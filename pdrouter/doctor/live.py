"""Reads a running cluster, and tries the addresses of its pods."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pdrouter.cluster.kube_api import KubeApi, KubeRefused
from pdrouter.doctor.engines import read_running_pods
from pdrouter.doctor.objects.base import KubeObject
from pdrouter.doctor.objects.kinds import KINDS, Kind
from pdrouter.doctor.snapshot import Snapshot

_PAGE = "500"
_LIST_S = 30.0
_CONNECT_S = 3.0
_CONNECTIONS = 32
_ABSENT = 404
_FORBIDDEN = 403


class _Metadata(msgspec.Struct, frozen=True):
    next_page: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]] = []
    metadata: _Metadata = _Metadata()


async def read_cluster(api: KubeApi, namespaces: Sequence[str], *, probe: bool) -> Snapshot:
    """Return the objects of a cluster.

    Args:
        api: the API server, open.
        namespaces: namespaces to look into; all if none is given.
        probe: whether to try the addresses of ready pods.

    Raises:
        KubeRefused: the API server answered with an error other than that a kind is not installed
            or may not be read (both are noted in the snapshot), or all kinds are so.
        KubeConfigInvalid: the credentials cannot be read.
        aiohttp.ClientError, TimeoutError: there is no answer.
    """
    documents: list[Mapping[str, Any]] = []
    unread: set[type[KubeObject]] = set()
    notes: list[str] = []
    for kind in KINDS:
        scopes = namespaces if namespaces and kind.namespaced else ("",)
        for namespace in scopes:
            try:
                documents += await _list(api, kind, namespace)
            except KubeRefused as refused:
                unread.add(kind.type)
                if refused.code not in (_ABSENT, _FORBIDDEN) or len(unread) == len(KINDS):
                    raise
                if refused.code == _FORBIDDEN:
                    notes.append(f"{kind.name} objects were not checked: {refused}")
    snapshot = Snapshot.build(documents, live=True, unread=frozenset(unread), notes=tuple(notes))
    if not probe:
        return snapshot
    addresses = {
        pod.address: (pod.ip, pod.port) for pod in read_running_pods(snapshot) if pod.ready
    }
    return dataclasses.replace(snapshot, unreachable=await _probe(addresses))


async def _list(api: KubeApi, kind: Kind, namespace: str) -> list[dict[str, Any]]:
    """Return all objects of a kind; a list names the kind once, not in its items."""
    version = f"{kind.group}/{kind.version}" if kind.group else kind.version
    found: list[dict[str, Any]] = []
    query = {"limit": _PAGE}
    while True:
        async with api.get(
            kind.path(namespace), query, total_s=_LIST_S, silence_s=_LIST_S
        ) as response:
            page = msgspec.json.decode(await response.read(), type=_Page)
        found += [{**item, "apiVersion": version, "kind": kind.name} for item in page.items]
        if not page.metadata.next_page:
            return found
        query = {"limit": _PAGE, "continue": page.metadata.next_page}


async def _probe(addresses: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return the addresses that take no connection, with the reason."""
    slots = asyncio.Semaphore(_CONNECTIONS)
    unreachable: dict[str, str] = {}

    async def connect(address: str, host: str, port: int) -> None:
        async with slots:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    _, writer = await asyncio.open_connection(host, port)
            except TimeoutError:
                unreachable[address] = f"no answer within {_CONNECT_S:g}s"
            except OSError as error:
                unreachable[address] = error.strerror or type(error).__name__
            else:
                writer.close()

    async with asyncio.TaskGroup() as tasks:
        for address, (host, port) in addresses.items():
            tasks.create_task(connect(address, host, port))
    return unreachable
