"""Pods from a file, for installations without Kubernetes."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import yaml

from pdrouter.cluster.pods import Pod, Role, format_address, parse_address
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.source import SourceUnusable
from pdrouter.cluster.view import PodCache

log = logging.getLogger(__name__)

NAMESPACE = "standalone"
"""Namespace of pods from a file, as in aibrix."""


class EndpointsInvalid(SourceUnusable):
    """The file cannot be read, or does not say what pods there are."""


class _RoleSet(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    prefill: list[str] = []
    decode: list[str] = []


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    engine: str = "vllm"
    kv_connector: str | None = None
    rolesets: list[_RoleSet] = []
    endpoints: list[str] = []


class _Endpoints(msgspec.Struct, forbid_unknown_fields=True):
    models: list[_Model]


def parse_endpoints(
    text: str, engines: tuple[str, ...], kv_connectors: tuple[str, ...]
) -> tuple[Pod, ...]:
    """Return the pods that an endpoints file describes.

    Args:
        text: YAML in the format of aibrix, with `kv_connector` beside it.
        engines: names that `engine` may have.
        kv_connectors: names that `kv_connector` may have.

    Raises:
        EndpointsInvalid: the text is not such a file; the message says where and why.
    """
    try:
        models = msgspec.convert(_read_yaml(text), _Endpoints).models
    except msgspec.ValidationError as error:
        raise EndpointsInvalid(str(error)) from None
    names = [model.name for model in models]
    for model in models:
        if not model.name or names.count(model.name) > 1:
            raise EndpointsInvalid(f"model name {model.name!r} is empty or occurs twice")
        _check_name(model.name, "engine", model.engine, engines)
        _check_name(model.name, "kv_connector", model.kv_connector, (None, *kv_connectors))
    return tuple(pod for model in models for pod in _read_model(model))


def _read_yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    # Beside its own errors, PyYAML raises what its readers of scalars and its recursion run into:
    # `2024-99-99` is a date to it.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise EndpointsInvalid(f"not valid YAML: {' '.join(str(error).split())}") from None


def _check_name(model: str, member: str, name: str | None, allowed: tuple[str | None, ...]) -> None:
    if name not in allowed:
        known = ", ".join(option for option in allowed if option)
        raise EndpointsInvalid(f"model {model!r}: {member} {name!r} is none of {known}")


def _read_model(model: _Model) -> list[Pod]:
    if not model.rolesets and not model.endpoints:
        raise EndpointsInvalid(f"model {model.name!r} has neither rolesets nor endpoints")
    entries = [("", Role.BOTH, address) for address in model.endpoints]
    for roleset in model.rolesets:
        if not roleset.prefill and not roleset.decode:
            raise EndpointsInvalid(
                f"model {model.name!r}: roleset {roleset.name!r} has no addresses"
            )
        entries += [(roleset.name, Role.PREFILL, address) for address in roleset.prefill]
        entries += [(roleset.name, Role.DECODE, address) for address in roleset.decode]
    pods: list[Pod] = []
    seen: set[str] = set()
    for index, (roleset_name, role, text) in enumerate(entries):
        try:
            ip, port = parse_address(text)
        except ValueError as error:
            raise EndpointsInvalid(f"model {model.name!r}: {error}") from None
        address = format_address(ip, port)
        if address in seen:
            raise EndpointsInvalid(f"model {model.name!r}: {address} is listed twice")
        seen.add(address)
        pods.append(
            Pod.create(
                # Two models at one address share its load, and a reload keeps it.
                uid=address,
                name=_name_pod(model.name, ip, index),
                namespace=NAMESPACE,
                ip=ip,
                port=port,
                model=model.name,
                role=role,
                roleset=roleset_name,
                engine=model.engine,
                kv_connector=model.kv_connector,
            )
        )
    return pods


def _name_pod(model: str, ip: str, index: int) -> str:
    sanitised = re.sub(r"[^a-z0-9]+", "-", f"{model}-{ip}".lower()).strip("-")
    return f"{sanitised}-{index}"


class EndpointsFile:
    """Feeds a cache from a file, and again whenever the file changes."""

    def __init__(
        self,
        path: Path,
        cache: PodCache,
        *,
        engines: tuple[str, ...],
        kv_connectors: tuple[str, ...],
        poll_interval_s: float,
        on_reload: Callable[[bool], None],
    ) -> None:
        """Set up the source; nothing is read yet.

        Args:
            path: the file. A symbolic link is followed at each look, as mounted ConfigMaps need.
            cache: what to feed.
            engines: names that `engine` may have.
            kv_connectors: names that `kv_connector` may have.
            poll_interval_s: seconds between two looks at the file.
            on_reload: called after each attempt to read a changed file, with its success.
        """
        self._path = path
        self._cache = cache
        self._engines = engines
        self._kv_connectors = kv_connectors
        self._poll_interval_s = poll_interval_s
        self._on_reload = on_reload
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
        pods = await asyncio.to_thread(self._read)
        self._cache.replace(pods)

    async def watch(self) -> None:
        """Read the file again whenever it changes, until cancelled.

        A broken file leaves the last good pods in use.
        """
        while True:
            await asyncio.sleep(self._poll_interval_s)
            if await asyncio.to_thread(self._identify) == self._seen:
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

    def _read(self) -> tuple[Pod, ...]:
        # Noted before reading, so that a change while reading is seen at the next look.
        self._seen = self._identify()
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EndpointsInvalid(f"{self._path}: {error}") from None
        try:
            return parse_endpoints(text, self._engines, self._kv_connectors)
        except EndpointsInvalid as error:
            raise EndpointsInvalid(f"{self._path}: {error}") from None
