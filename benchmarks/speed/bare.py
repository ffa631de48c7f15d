"""The least that an ext_proc server on grpc.aio can do: constant replies, nothing parsed.

`python -m benchmarks.speed.bare --target ip:port [--post URL]` prints its port. With `--post`, each
body goes to that URL, and its reply waits for the answer.
"""

import argparse
import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import grpc
import grpc.aio
import uvloop

from pdrouter.extproc.codec import encode
from pdrouter.extproc.messages import Phase, PhaseReply
from pdrouter.extproc.server import SERVICE
from pdrouter.openai.headers import TARGET_POD

_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_LARGE_BODY_BYTES = 1024 * 1024


async def serve(target: str, post_url: str | None) -> None:
    """Serve until killed."""
    # Envoy sends them in this order, so that nothing has to be read.
    replies = (
        encode(PhaseReply(Phase.REQUEST_HEADERS)),
        encode(
            PhaseReply(
                Phase.REQUEST_BODY, set_headers=((TARGET_POD, target),), clear_route_cache=True
            )
        ),
        encode(PhaseReply(Phase.RESPONSE_HEADERS)),
    )
    async with AsyncExitStack() as stack:
        session = None
        if post_url is not None:
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

        async def process(requests: AsyncIterator[bytes], context: Any) -> None:  # noqa: ANN401 - grpc has no types
            del requests
            for index, reply in enumerate(replies):
                message = await context.read()
                if message is grpc.aio.EOF:
                    return
                if index == 1 and session is not None and post_url is not None:
                    large = len(message) > _LARGE_BODY_BYTES
                    data = io.BytesIO(message) if large else message
                    async with session.post(post_url, data=data) as response:
                        await response.read()
                await context.write(reply)
            await context.read()

        server: Any = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ]
        )
        handler = grpc.stream_stream_rpc_method_handler(process)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--post")
    options = parser.parse_args()
    uvloop.run(serve(options.target, options.post))


if __name__ == "__main__":
    main()
