"""Engines of a benchmark: nginx where they must cost little, and one that lets requests wait."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.transports.tools import ToolMissing, find_free_port, wait_for_port

PREFILL_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 1, "total_tokens": 2001},
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(125))],
            "remote_engine_id": "engine",
            "remote_request_id": "request",
            "remote_host": "10.0.0.1",
            "remote_port": 5600,
        },
    }
)
DECODE_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 200}}],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 50, "total_tokens": 2050},
    }
)
_HELD_ANSWER = (
    f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(PREFILL_ANSWER)}\r\n\r\n"
    f"{PREFILL_ANSWER}"
).encode()

_CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 16000; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_max_body_size 64m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{prefill} backlog=8192;
        location = /metrics {{ return 404; }}
        location / {{ return 200 '{prefill_answer}'; }}
    }}
    server {{
        listen 127.0.0.1:{decode} backlog=8192;
        location = /metrics {{ return 404; }}
        location / {{ return 200 '{decode_answer}'; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Engines:
    """Where the engines listen.

    Attributes:
        prefill: address of the prefill engine.
        decode: address of the decode engine.
    """

    prefill: str
    decode: str


@asynccontextmanager
async def run_nginx() -> AsyncIterator[Engines]:
    """Run engines that answer at once, whatever they are asked.

    Raises:
        ToolMissing: there is no nginx.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise ToolMissing("nginx", "nginx-light")
    prefill, decode = find_free_port(), find_free_port()
    with tempfile.TemporaryDirectory(prefix="pdrouter-nginx-") as name:
        config = Path(name) / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                directory=name,
                prefill=prefill,
                decode=decode,
                prefill_answer=PREFILL_ANSWER,
                decode_answer=DECODE_ANSWER,
            )
        )
        process = await asyncio.create_subprocess_exec(
            *(binary, "-e", f"{name}/error.log", "-p", name, "-c", config)
        )
        try:
            await wait_for_port(decode)
            yield Engines(f"127.0.0.1:{prefill}", f"127.0.0.1:{decode}")
        finally:
            process.terminate()
            await process.wait()


@dataclass
class WaitingPrefill:
    """A prefill engine that answers when it may.

    Attributes:
        waiting: how many requests wait.
        answered: how many were answered.
        may_answer: set once they need not wait any more.
    """

    waiting: int = 0
    answered: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Serve; gives the address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=8192)
        try:
            host, port = server.sockets[0].getsockname()
            yield f"{host}:{port}"
        finally:
            self.may_answer.set()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A router may leave at any moment: its clients do.
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            request = (await reader.readuntil(b"\r\n\r\n")).lower()
            if request.startswith(b"get"):
                return  # The router asks for metrics; an engine need not have any.
            length = int(request.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self.waiting += 1
            try:
                await self.may_answer.wait()
            finally:
                self.waiting -= 1
            self.answered += 1
            writer.write(_HELD_ANSWER)
