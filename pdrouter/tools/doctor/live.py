"""Reads a running cluster, and tries the addresses of its pods."""

import asyncio
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from pdrouter.cluster.kubernetes.api import KubeApi, KubeRefused
from pdrouter.tools.doctor.engines import read_running_pods
from pdrouter.tools.doctor.objects.base import KubeObject
from pdrouter.tools.doctor.objects.kinds import KINDS, ObjectKind
from pdrouter.tools.doctor.snapshot import Document, Snapshot

_PAGE = "500"
_LIST_S = 30.0
_CONNECT_S = 3.0
_CONNECTIONS = 32
_ABSENT = 404
_FORBIDDEN = 403
_EVERYWHERE = "*"
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class _Metadata(msgspec.Struct, frozen=True):
    next_page: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]] = []
    metadata: _Metadata = _Metadata()


@dataclass(slots=True)
class _Reading:
    """What was read of a cluster, and what was not.

    Attributes:
        documents: the objects.
        scopes: namespaces in which all objects of a kind were read, `*` for all.
        gaps: kinds that may not be listed, each with the refusal, by what that means.
        refused: the last refusal, of whatever kind.
    """

    documents: list[Document] = field(default_factory=list)
    scopes: dict[type[KubeObject], frozenset[str]] = field(default_factory=dict)
    gaps: dict[str, list[tuple[ObjectKind, KubeRefused]]] = field(default_factory=dict)
    refused: KubeRefused | None = None

    async def add(self, api: KubeApi, kind: ObjectKind, namespace: str) -> KubeRefused | None:
        """Read the objects of a kind in a namespace, or in all (`*`).

        Returns:
            Why they may not be read; None if they were, or if the kind is not installed.

        Raises:
            KubeRefused: the API server answered with another error.
        """
        try:
            self.documents += await _list(api, kind, "" if namespace == _EVERYWHERE else namespace)
        except KubeRefused as refused:
            if refused.code not in (_ABSENT, _FORBIDDEN):
                raise
            self.refused = refused
            return refused if refused.code == _FORBIDDEN else None
        self.scopes[kind.type] = self.scopes.get(kind.type, frozenset()) | {namespace}
        return None

    def note(self, gap: str, kind: ObjectKind, refused: KubeRefused) -> None:
        """Keep in mind that a kind was not read, or not everywhere."""
        self.gaps.setdefault(gap, []).append((kind, refused))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not read, for people."""
        return tuple(
            f"{', '.join(kind.name for kind, _ in kinds)}: {gap} ({kinds[0][1]})"
            for gap, kinds in self.gaps.items()
        )


async def read_cluster(
    api: KubeApi, namespaces: Sequence[str], *, home: str, probe: bool
) -> Snapshot:
    """Return the objects of a cluster.

    Args:
        api: the API server, open.
        namespaces: namespaces to look into; all if none is given.
        home: namespace to look into for kinds that may not be listed in all.
        probe: whether to try the addresses of ready pods.

    Raises:
        KubeRefused: the API server answered with an error other than that a kind is not installed
            or may not be read (both are noted in the snapshot), or all kinds are so.
        KubeConfigInvalid: the credentials cannot be read.
        aiohttp.ClientError, TimeoutError: there is no answer.
    """
    reading = _Reading()
    for kind in KINDS:
        if not kind.namespaced or not namespaces:
            await _read_everywhere(api, reading, kind, home)
            continue
        for namespace in namespaces:
            refused = await reading.add(api, kind, namespace)
            if refused is not None:
                reading.note(f"not checked in namespace {namespace}", kind, refused)
    if not reading.scopes and reading.refused is not None:
        raise reading.refused
    snapshot = Snapshot.build(
        reading.documents, live=True, scopes=reading.scopes, notes=reading.notes
    )
    if not probe:
        return snapshot
    addresses = {
        pod.address: (pod.ip, pod.port) for pod in read_running_pods(snapshot) if pod.ready
    }
    return dataclasses.replace(snapshot, unreachable=await _probe(addresses))


async def _read_everywhere(api: KubeApi, reading: _Reading, kind: ObjectKind, home: str) -> None:
    """Read the objects of a kind in all namespaces or, where that is forbidden, in one."""
    refused = await reading.add(api, kind, _EVERYWHERE)
    if refused is None:
        return
    if kind.namespaced and await reading.add(api, kind, home) is None:
        gap = f"checked in namespace {home} only, name others with --namespaces"
    else:
        gap = "not checked"
    reading.note(gap, kind, refused)


def read_home_namespace(kubeconfig: Path | None) -> str:
    """Return the namespace that a kubeconfig's context means, or the pod's own without one.

    Both are read by then to reach the API server; a file that says nothing means `default`.
    """
    try:
        if kubeconfig is None:
            return _POD_NAMESPACE.read_text().strip() or "default"
        # KUBECONFIG may name several files: the first that says something counts.
        contents = [
            yaml.safe_load(Path(name).read_text()) or {}
            for name in str(kubeconfig).split(os.pathsep)
            if name and Path(name).exists()
        ]
        current = next(each["current-context"] for each in contents if each.get("current-context"))
        contexts = [context for each in contents for context in each.get("contexts") or []]
        chosen = next(each["context"] for each in contexts if each["name"] == current)
        return str(chosen.get("namespace") or "default")
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
        LookupError,
        TypeError,
        AttributeError,
        StopIteration,
    ):
        return "default"


async def _list(api: KubeApi, kind: ObjectKind, namespace: str) -> list[Document]:
    """Return all objects of a kind; a list names the kind once, not in its items."""
    version = f"{kind.group}/{kind.version}" if kind.group else kind.version
    found: list[Document] = []
    query = {"limit": _PAGE}
    while True:
        async with api.get(
            kind.path(namespace), query, total_s=_LIST_S, silence_s=_LIST_S
        ) as response:
            page = msgspec.json.decode(await response.read(), type=_Page)
        found += [
            Document({**item, "apiVersion": version, "kind": kind.name}) for item in page.items
        ]
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
