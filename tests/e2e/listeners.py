"""Envoys of many shapes before one router: a listener for each, all in one process."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import httpx
import yaml
from expectations import PATIENCE_S

from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import LocalStack

Edit = Callable[[dict[str, Any]], object]
"""Changes the connection manager of a listener."""

_HERE = Address("127.0.0.1", 0)
_TYPES = "type.googleapis.com/envoy.extensions.filters.http."


def http_filter(name: str, message: str, **config: Any) -> dict[str, Any]:
    """Return an HTTP filter.

    Args:
        name: name of the filter, after `envoy.filters.http.`.
        message: type of its configuration, such as `cors.v3.Cors`.
        config: the configuration.
    """
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": _TYPES + message, **config},
    }


def put_before(*filters: Mapping[str, Any]) -> Edit:
    """Put filters before ext_proc."""
    return lambda manager: manager["http_filters"].__setitem__(slice(0, 0), filters)


def put_after(*filters: Mapping[str, Any]) -> Edit:
    """Put filters after ext_proc."""
    return lambda manager: manager["http_filters"].__setitem__(slice(-1, -1), filters)


def find_ext_proc(manager: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the ext_proc filter."""
    (config,) = (
        each["typed_config"]
        for each in manager["http_filters"]
        if each["name"] == "envoy.filters.http.ext_proc"
    )
    found: dict[str, Any] = config
    return found


@asynccontextmanager
async def run_listeners(
    stack: LocalStack,
    edits: Mapping[str, Edit],
    resources: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Mapping[str, str]]:
    """Run an Envoy before a stack's router.

    Args:
        stack: the installation.
        edits: what is different at each listener, by name.
        resources: further clusters or secrets, by kind.
        options: for `EnvoyConfig`.

    Yields:
        `host:port` of each listener, by name.
    """
    router = Address("127.0.0.1", stack.router.server.port)
    config = EnvoyConfig(**{"routers": (router,), "listen": _HERE, "admin": _HERE, **options})
    text = await asyncio.to_thread(lambda: to_yaml(build_bootstrap(config)))
    bootstrap = yaml.safe_load(text)
    static = bootstrap["static_resources"]
    (plain,) = static["listeners"]
    static["listeners"] = [_edit(plain, name, edit) for name, edit in edits.items()]
    for kind, further in resources.items():
        static[kind] = [*static.get(kind, ()), *further]
    async with EnvoyProcess.run(yaml.safe_dump(bootstrap)) as envoy:
        yield await _find_addresses(envoy)


def _edit(plain: Mapping[str, Any], name: str, edit: Edit) -> dict[str, Any]:
    listener: dict[str, Any] = copy.deepcopy({**plain, "name": name})
    edit(listener["filter_chains"][0]["filters"][0]["typed_config"])
    return listener


async def _find_addresses(envoy: EnvoyProcess) -> dict[str, str]:
    async with httpx.AsyncClient(timeout=PATIENCE_S, verify=False) as client:
        page = (await client.get(f"http://{envoy.admin}/listeners?format=json")).json()
    sockets = {
        each["name"]: each["local_address"]["socket_address"] for each in page["listener_statuses"]
    }
    return {name: f"{each['address']}:{each['port_value']}" for name, each in sockets.items()}
