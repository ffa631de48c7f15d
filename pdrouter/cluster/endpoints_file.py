"""Pods from a file, for installations without Kubernetes."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pdrouter.cluster.endpoints_text import (
    EndpointLine,
    Endpoints,
    EndpointsInvalid,
    parse_endpoints,
)
from pdrouter.cluster.host_names import HostNames
from pdrouter.cluster.pods import Pod, Wires, format_address, is_ip
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache

log = logging.getLogger(__name__)

NAMESPACE = "standalone"
"""Namespace of pods from a file, as in aibrix."""

UNRESOLVED = "its host name is not resolved"
"""The obstacle of a pod without an address."""


def read_endpoints(path: Path, wires: Wires) -> Endpoints:
    """Return what a file says.

    Args:
        path: the file.
        wires: engines and connectors that the router can speak to.

    Raises:
        EndpointsInvalid: the file is missing or broken; the message names it.
    """
    try:
        return parse_endpoints(path.read_text(encoding="utf-8"), wires)
    except (OSError, UnicodeDecodeError, EndpointsInvalid) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise EndpointsInvalid(f"{path}: {cause}") from None


def create_pods(
    endpoints: Endpoints,
    addresses: Mapping[str, tuple[str, ...]],
    *,
    match_revisions: bool = True,
) -> tuple[Pod, ...]:
    """Return the pods that a file describes.

    A host name that stands for several addresses stands for as many pods, and for one that is not
    ready if it has none. An address that a model has twice, under two names, is its first pod.

    Args:
        endpoints: what the file says.
        addresses: addresses by host name.
        match_revisions: whether pairs are of one revision.
    """
    pods: dict[tuple[str, str], Pod] = {}
    for model, group in _group_by_model(endpoints).items():
        for index, endpoint in enumerate(group):
            for ip in addresses.get(endpoint.host, (endpoint.host,)):
                pod = _create_pod(endpoint, ip, index, match_revisions=match_revisions)
                for rank in endpoint.ranks.split(pod):
                    # What has an address of its own is known by that.
                    known = rank if rank.rank else replace(rank, uid=rank.address)
                    pods.setdefault((model, known.uid), known)
    return tuple(pods.values())


def _group_by_model(endpoints: Endpoints) -> Mapping[str, list[EndpointLine]]:
    groups: dict[str, list[EndpointLine]] = {}
    for endpoint in endpoints.endpoints:
        groups.setdefault(endpoint.model, []).append(endpoint)
    return groups


def _create_pod(endpoint: EndpointLine, ip: str, index: int, *, match_revisions: bool) -> Pod:
    return Pod.create(
        # Two models at one address share its load, and a reload keeps it.
        uid=format_address(ip, endpoint.port),
        name=_name_pod(endpoint, ip, index),
        namespace=NAMESPACE,
        ip=ip,
        port=endpoint.port,
        model=endpoint.model,
        role=endpoint.role,
        roleset=endpoint.roleset,
        engine=endpoint.engine,
        kv_connector=endpoint.kv_connector,
        revision=endpoint.revision if match_revisions else "",
        places=(endpoint.zone,) if endpoint.zone else (),
        obstacle=endpoint.unsupported or ("" if is_ip(ip) else UNRESOLVED),
        unsupported=endpoint.unsupported,
        bootstrap_port=endpoint.bootstrap_port,
    )


def _name_pod(endpoint: EndpointLine, ip: str, index: int) -> str:
    parts = [endpoint.model, *dict.fromkeys((endpoint.host, ip)), str(index)]
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class EndpointsFile:
    """Feeds a cache from a file, and again whenever the file changes."""

    def __init__(
        self,
        path: Path,
        cache: PodCache,
        *,
        wires: Wires,
        poll_interval_s: float,
        on_reload: Callable[[bool], None],
        match_revisions: bool = True,
        names: HostNames | None = None,
    ) -> None:
        """Set up the source; nothing is read yet.

        Args:
            path: the file. A symbolic link is followed at each look, as mounted ConfigMaps need.
            cache: what to feed.
            wires: engines and connectors that the router can speak to.
            poll_interval_s: seconds between two looks at the file.
            on_reload: called after each attempt to read a changed file, with its success.
            match_revisions: whether pairs are of one revision.
            names: resolves the host names in the file.
        """
        self._path = path
        self._cache = cache
        self._wires = wires
        self._poll_interval_s = poll_interval_s
        self._on_reload = on_reload
        self._match_revisions = match_revisions
        self._names = names or HostNames()
        self._endpoints = Endpoints((), ())
        self._seen: Any = None

    @property
    def stats(self) -> Mapping[str, ReflectorStats]:
        """Nothing: a file has no watches."""
        return {}

    @property
    def routes(self) -> None:
        """None: a file knows of no routes."""

    async def __aenter__(self) -> "EndpointsFile":
        await self.load()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing stays open."""

    async def load(self) -> None:
        """Read the file and replace the cache's view.

        Raises:
            EndpointsInvalid: the file is missing or broken; the cache keeps what it has.
        """
        self._endpoints = await asyncio.to_thread(self._read)
        for remark in self._endpoints.remarks:
            log.warning("%s: %s", self._path, remark)
        for left_out in self._endpoints.left_out:
            log.error("%s: %s", self._path, left_out)
        await self._resolve()

    async def _resolve(self) -> None:
        """Look up the host names of the file, and replace the cache's view if it differs."""
        addresses = await self._names.look_up(self._endpoints.host_names)
        pods = create_pods(self._endpoints, addresses, match_revisions=self._match_revisions)
        if pods != self._cache.view.pods or not self._cache.synced:
            self._cache.replace(pods)

    async def watch(self) -> None:
        """Read the file again whenever it changes, and resolve its names, until cancelled.

        A broken file leaves the last good pods in use.
        """
        while True:
            await asyncio.sleep(self._poll_interval_s)
            if await asyncio.to_thread(self._identify) == self._seen:
                if self._endpoints.host_names:
                    await self._resolve()
                continue
            try:
                await self.load()
            except EndpointsInvalid as error:
                log.error("endpoints file is broken, the last good one stays in use: %s", error)
                self._on_reload(False)
            else:
                log.info("endpoints file was read again: %s", self._path)
                self._on_reload(True)

    def _identify(self) -> object:
        try:
            status = self._path.stat()
        except OSError as error:
            return error.errno
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> Endpoints:
        # Noted before reading, so that a change while reading is seen at the next look.
        self._seen = self._identify()
        return read_endpoints(self._path, self._wires)
