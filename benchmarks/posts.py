"""What a POST to an engine costs the router's client, beside aiohttp.

`python -m benchmarks.posts`. An nginx answers at once with a prefill engine's answer; both clients
keep their connections and run on uvloop, in turns. CPU is that of this process alone.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from statistics import median

import aiohttp
import uvloop

from benchmarks.speed.engines import PREFILL_ANSWER, Engines, run_engines
from benchmarks.steps import make_body
from pdrouter.engine_http.client import ClientLimits, HttpClient

PATH = "/v1/chat/completions"
HEADERS = {"content-type": "application/json", "x-request-id": "0123456789abcdef"}
CONCURRENCIES = (1, 16, 64)
ROUNDS = 5
_PATIENCE_S = 60.0
_ANSWER_BYTES = 2**20
_FIRST_POSTS = 500

Post = Callable[[], Awaitable[bytes]]


async def measure(post: Post, posts: int, at_once: int) -> float:
    """Return the microseconds of CPU of one POST, of so many with so many at a time."""
    numbers = iter(range(posts))

    async def send() -> None:
        for _ in numbers:
            answer = await post()
            assert len(answer) > len(PREFILL_ANSWER)

    begun = time.process_time()
    await asyncio.gather(*(send() for _ in range(at_once)))
    return (time.process_time() - begun) / posts * 1e6


async def compare(clients: Mapping[str, Post], posts: int) -> None:
    """Measure the clients in turns, and print the medians of the rounds."""
    for at_once in CONCURRENCIES:
        found: dict[str, list[float]] = {name: [] for name in clients}
        for post in clients.values():
            await measure(post, _FIRST_POSTS, at_once)
        for _ in range(ROUNDS):
            for name, post in clients.items():
                found[name].append(await measure(post, posts, at_once))
        own, other = (median(found[name]) for name in clients)
        print(
            f"{at_once} at once: {own:.1f} µs of CPU for a POST, {other:.1f} with aiohttp"
            f" {aiohttp.__version__}: {own / other:.0%}"
        )


async def run(engines: Engines, kilobytes: int, posts: int) -> None:
    body = make_body(kilobytes * 1000)
    address = f"127.0.0.1:{engines.prefill_port}"
    limits = ClientLimits(_PATIENCE_S, _PATIENCE_S, _ANSWER_BYTES)
    patience = aiohttp.ClientTimeout(total=_PATIENCE_S, sock_connect=_PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_PATIENCE_S)
    with closing(HttpClient(limits, _PATIENCE_S)) as client:
        async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:

            async def post_own() -> bytes:
                sending = client.request(
                    "POST", address, PATH, HEADERS, body=(body,), total_s=_PATIENCE_S
                )
                return (await sending).body

            async def post_aiohttp() -> bytes:
                url = f"http://{address}{PATH}"
                async with session.post(url, data=body, headers=HEADERS) as response:
                    return await response.read()

            await compare({"own": post_own, "aiohttp": post_aiohttp}, posts)


async def main(kilobytes: int, posts: int) -> None:
    async with run_engines() as engines:
        await run(engines, kilobytes, posts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kilobytes", type=int, default=8)
    parser.add_argument("--posts", type=int, default=3000)
    options = parser.parse_args()
    uvloop.run(main(options.kilobytes, options.posts))
