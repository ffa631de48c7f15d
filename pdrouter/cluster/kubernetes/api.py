"""GET requests to the Kubernetes API server, with credentials that may change meanwhile."""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import aiohttp
import msgspec
import yaml
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)

from pdrouter.cluster.source import SourceUnusable

log = logging.getLogger(__name__)

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NO_ACCOUNT = (
    "no service account of a pod; outside of one, --kubeconfig FILE (KUBECONFIG) says how to reach"
    " the cluster, and ~/.kube/config is used if it exists"
)
_CONNECT_S = 3.0
_CONFIGURE_S = 30.0
# Beside its own errors, the client raises what its reading of a file runs into, which may be half
# written at that moment.
_UNREADABLE = (ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, LookupError)


class KubeConfigInvalid(SourceUnusable):
    """There is no usable configuration for the API server."""


class KubeStatus(msgspec.Struct, frozen=True):
    """A `Status` object: how the API server says that something went wrong."""

    code: int = 0
    reason: str = ""
    message: str = ""


class KubeRefused(Exception):
    """The API server answered with an error.

    Attributes:
        code: HTTP status, of the answer or of the event in a watch.
        retry_after_s: seconds after which it wants to be asked again; None if it does not say.
    """

    def __init__(self, code: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.retry_after_s = retry_after_s


Connect = Callable[[], Awaitable[Configuration]]
"""Reads the configuration anew."""


def find_kubeconfig(named: Path | None) -> Path | None:
    """Return the file that says how to reach the API server; None for the pod's own account.

    Args:
        named: the file that the operator names. Without one, a pod's own account is used, and
            outside of a pod kubectl's usual file.
    """
    if named is not None or _OWN_NAMESPACE.exists():
        return named
    with suppress(RuntimeError):  # There is no home directory.
        usual = Path.home() / ".kube" / "config"
        if usual.exists():
            return usual
    return None


async def connect_in_cluster() -> Configuration:
    """Read the service account of the pod that this process runs in.

    Raises:
        KubeConfigInvalid: the process does not run in a pod.
    """
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except _UNREADABLE as error:
        raise KubeConfigInvalid(f"{_NO_ACCOUNT}: {error}") from error
    return configuration


def connect_by_kubeconfig(path: Path) -> Connect:
    """Return what reads a kubeconfig file, its current context."""

    async def connect() -> Configuration:
        configuration = Configuration()
        try:
            _expect_file(path)
            await load_kube_config(
                config_file=str(path), client_configuration=configuration, persist_config=False
            )
        except _UNREADABLE as error:
            raise KubeConfigInvalid(f"{path}: {' '.join(str(error).split())}") from error
        return configuration

    return connect


def _expect_file(kubeconfig: Path) -> None:
    """Check that one of the files is there: the client takes those that are not for empty ones.

    Raises:
        KubeConfigInvalid: none is.
    """
    if not any(Path(each).exists() for each in str(kubeconfig).split(os.pathsep)):
        raise KubeConfigInvalid(f"{kubeconfig}: there is no such file")


def find_own_namespace(kubeconfig: Path | None) -> str:
    """Return the namespace that this process is in, or that its kubeconfig file speaks of.

    Args:
        kubeconfig: that file; None where the process runs in a pod.

    Raises:
        KubeConfigInvalid: there is no such file, or no pod.
    """
    try:
        if kubeconfig is None:
            return _OWN_NAMESPACE.read_text().strip()
        _expect_file(kubeconfig)
        _, current = list_kube_config_contexts(str(kubeconfig))
        # kubectl's namespace for a context that names none.
        return (current or {"context": {}})["context"].get("namespace") or "default"
    except _UNREADABLE as error:
        where = _NO_ACCOUNT if kubeconfig is None else kubeconfig
        raise KubeConfigInvalid(f"{where}: {' '.join(str(error).split())}") from error


@dataclass(slots=True)
class _Client:
    """A client with the credentials of one moment; closed when the last request has ended."""

    api: ApiClient
    requests: int = 0
    retired: bool = False

    async def close_if_idle(self) -> None:
        if self.retired and not self.requests:
            await self.api.close()


class KubeApi:
    """The API server. Use as an async context manager."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._client: _Client | None = None
        self._renewing = asyncio.Lock()

    async def __aenter__(self) -> "KubeApi":
        """Read the configuration; nothing is sent yet.

        Raises:
            KubeConfigInvalid: there is none.
        """
        self._client = await self._create_client()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.api.close()

    @asynccontextmanager
    async def get(
        self, path: str, query: Mapping[str, str], *, total_s: float | None, silence_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a GET request.

        Args:
            path: path of the resource.
            query: parameters.
            total_s: seconds for everything; None for a stream.
            silence_s: seconds without a byte.

        Yields:
            The response, of status 200, with its body unread.

        Raises:
            KubeRefused: the status is another one.
            KubeConfigInvalid: the credentials had to be read anew, and could not be.
            aiohttp.ClientError, TimeoutError: there is no answer.
        """
        client = self._client
        if client is None:
            raise RuntimeError("the API client is not open")
        client.requests += 1
        try:
            async with await self._send(client.api, path, query, total_s, silence_s) as response:
                if response.status == 401:
                    await self._renew(client)
                if response.status != 200:
                    raise await _read_refusal(response)
                yield response
        except (aiohttp.ClientSSLError, ssl.SSLError):
            # The authority may have been replaced: it is read once per client.
            await self._renew(client)
            raise
        finally:
            client.requests -= 1
            await client.close_if_idle()

    async def _send(
        self,
        api: ApiClient,
        path: str,
        query: Mapping[str, str],
        total_s: float | None,
        silence_s: float,
    ) -> aiohttp.ClientResponse:
        response: aiohttp.ClientResponse = await api.call_api(
            path,
            "GET",
            query_params=list(query.items()),
            header_params={"accept": "application/json"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=aiohttp.ClientTimeout(
                total=total_s, sock_connect=_CONNECT_S, sock_read=silence_s
            ),
        )
        return response

    async def _renew(self, used: _Client) -> None:
        """Read the configuration anew, unless somebody else has done so meanwhile."""
        async with self._renewing:
            if self._client is used:
                self._client = await self._create_client()
                used.retired = True

    async def _create_client(self) -> _Client:
        try:
            # A kubeconfig may name a program that fetches the credentials.
            async with asyncio.timeout(_CONFIGURE_S):
                configuration = await self._connect()
        except TimeoutError:
            raise KubeConfigInvalid(f"no credentials within {_CONFIGURE_S:g} s") from None
        return _Client(ApiClient(configuration))


async def _read_refusal(response: aiohttp.ClientResponse) -> KubeRefused:
    body = await response.read()
    try:
        message = msgspec.json.decode(body, type=KubeStatus).message
    except msgspec.MsgspecError:
        message = body[:200].decode(errors="replace")
    retry_after = response.headers.get("retry-after", "")
    return KubeRefused(
        response.status, message, float(retry_after) if retry_after.isdecimal() else None
    )
