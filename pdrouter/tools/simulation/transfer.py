"""The decode engine's side of a KV transfer: it fetches the blocks, or has them freed."""

import io
import json
from collections.abc import Mapping
from typing import Self

import aiohttp
from yarl import URL

from pdrouter.tools.simulation.legs import Handle
from pdrouter.tools.simulation.node_address import THIS_NODE

FETCH_PATH = "/simulation/kv/fetch"
"""Where a prefill engine gives blocks away; it stands in for the NIXL side channel."""
RELEASE_PATH = "/simulation/kv/release"
"""Where it is told that nobody will fetch them."""

_TIMEOUT_S = 60.0


class TransferFailed(Exception):
    """The blocks of a handle could not be had; the message says why."""


class BlockFetcher:
    """Fetches blocks, or has them freed, over HTTP."""

    def __init__(self, own_host: str, revision: str = "", scheme: str = "http") -> None:
        """Open a client.

        Args:
            own_host: The decode engine's address. A handle that says `localhost` or `0.0.0.0`
                means the node on which it is read, so such a fetch goes there.
            revision: The decode engine's version.
            scheme: What engines' APIs speak.
        """
        self._own_host = own_host
        self._revision = revision
        self._scheme = scheme
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
            # Whose certificate it is does not matter.
            connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=False),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def fetch(self, handle: Handle, digest: str) -> None:
        """Fetch the blocks that a handle stands for.

        Args:
            handle: What came with the decode leg.
            digest: The identity of the decode leg's prompt.

        Raises:
            TransferFailed: No prefill engine answers there, or it refuses.
        """
        asked = {"handle": handle, "prompt_digest": digest, "revision": self._revision}
        await self._tell(handle, FETCH_PATH, asked)

    async def release(self, handle: Handle) -> None:
        """Have the blocks freed that a handle stands for.

        Args:
            handle: What came with a request that the engine has refused.

        Raises:
            TransferFailed: No prefill engine answers there, or it refuses.
        """
        await self._tell(handle, RELEASE_PATH, {"handle": handle})

    async def _tell(self, handle: Handle, path: str, message: Mapping[str, object]) -> None:
        host, port = fetch_address(handle)
        if host in THIS_NODE:
            host = self._own_host
        body = json.dumps(message).encode()
        try:
            url = URL.build(scheme=self._scheme, host=host, port=port, path=path)
            async with self._client.post(
                url, data=io.BytesIO(body), headers={"content-type": "application/json"}
            ) as response:
                answer = await response.text()
                if response.status != 200:
                    raise TransferFailed(f"{host}:{port} refuses: {response.status} {answer}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise TransferFailed(f"{host}:{port} does not answer: {error!r}") from error


def fetch_address(handle: Handle) -> tuple[str, int]:
    """Give the address in a handle: two members in NIXL's, the end of the id in Neuron's.

    Raises:
        TransferFailed: There is none.
    """
    host, port = handle.get("remote_host"), handle.get("remote_port")
    if host is None:
        _, _, address = str(handle.get("id")).rpartition("@")
        host, _, digits = address.rpartition(":")
        port = int(digits) if digits.isdecimal() else None
    if not isinstance(host, str) or not host or type(port) is not int:
        raise TransferFailed("the handle has no usable address")
    return host, port
