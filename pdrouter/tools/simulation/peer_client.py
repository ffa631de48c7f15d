"""What engines ask each other, where real ones have protocols of their own."""

import json
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from aiohttp import ClientTimeout
from yarl import URL

from pdrouter.tools.simulation.transfer import TransferFailed


class PeerClient:
    """A decode engine's client. Use as an async context manager."""

    def __init__(self, timeout_s: float) -> None:
        """Open it.

        Args:
            timeout_s: Seconds for which it waits for an answer, that is, for blocks.
        """
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            # Whose certificate it is does not matter.
            connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=False),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(
        self, url: URL, question: Mapping[str, object], timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Send a question to another engine, and return its answer.

        Args:
            url: Where it answers.
            question: What it is asked.
            timeout_s: Seconds for which it is waited for, if not for as long as for all others.

        Raises:
            TransferFailed: There is no engine, or no answer in time.
        """
        timeout = self._client.timeout if timeout_s is None else ClientTimeout(total=timeout_s)
        try:
            async with self._client.post(
                url, data=json.dumps(question).encode(), timeout=timeout
            ) as response:
                if response.status >= 500:
                    raise TransferFailed(f"{url}: {response.status}")
                answer: dict[str, Any] = await response.json()
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransferFailed(f"{url}: {error!r}") from error
