"""Engines that answer at once with what never changes: one nginx for all pods."""

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.scraping import make_page
from benchmarks.speed.processes import run_process
from benchmarks.speed.programs import find_program

MODEL = "m"
_METRICS_PAGE_BYTES = 30_000
PREFILL_ANSWER = {
    "id": "chatcmpl-prefill",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x"},
            "finish_reason": "length",
        }
    ],
    "usage": {"prompt_tokens": 2048, "completion_tokens": 1, "total_tokens": 2049},
    "kv_transfer_params": {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(range(128))],
        "remote_engine_id": "engine",
        "remote_request_id": "request",
        "remote_host": "127.0.0.1",
        "remote_port": 5600,
        "tp_size": 1,
    },
}
_DECODE_ANSWER = {
    "id": "chatcmpl-decode",
    "object": "chat.completion",
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The answer."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 2048, "completion_tokens": 3, "total_tokens": 2051},
}
_CONFIGURATION = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr warn;
worker_rlimit_nofile 65536;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  client_body_temp_path {directory}/bodies;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  default_type application/json;
  allow 127.0.0.0/8;
  deny all;
  server {{
    listen {prefill_port} backlog=8192;
    location = /metrics {{ alias {directory}/metrics; }}
    location / {{ return 200 '{prefill_answer}'; }}
  }}
  server {{
    listen {decode_port} backlog=8192;
    location = /metrics {{ alias {directory}/metrics; }}
    location / {{ return 200 '{decode_answer}'; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Engines:
    """Where the engines listen: every address of 127.0.0.0/8 is a pod.

    Attributes:
        prefill_port: port of all prefill pods.
        decode_port: port of all decode pods.
    """

    prefill_port: int
    decode_port: int

    @property
    def decode_address(self) -> str:
        """Address of a decode pod."""
        return f"127.0.0.1:{self.decode_port}"

    @property
    def prefill_url(self) -> str:
        """Where a prefill pod takes requests."""
        return f"http://127.0.0.1:{self.prefill_port}/v1/chat/completions"

    def write_endpoints(self, path: Path, pods: int) -> Path:
        """Write an endpoints file with so many pods, half of them for prefill; return its path."""
        ips = [name_ip(number) for number in range(pods // 2)]
        roleset = {
            "name": "default",
            "prefill": [f"{ip}:{self.prefill_port}" for ip in ips],
            "decode": [f"{ip}:{self.decode_port}" for ip in ips],
        }
        path.write_text(yaml.safe_dump({"models": [{"name": MODEL, "rolesets": [roleset]}]}))
        return path


def name_ip(number: int) -> str:
    """Return the address of a pod on loopback."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def run_engines(prefill_port: int = 0, decode_port: int = 0) -> AsyncIterator[Engines]:
    """Run nginx around a block; a port of 0 stands for a free one."""
    engines = Engines(prefill_port or find_free_port(), decode_port or find_free_port())
    with tempfile.TemporaryDirectory(prefix="pdrouter-") as name:
        directory = Path(name)
        (directory / "metrics").write_bytes(make_page(_METRICS_PAGE_BYTES))
        configuration = directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                prefill_port=engines.prefill_port,
                decode_port=engines.decode_port,
                prefill_answer=json.dumps(PREFILL_ANSWER),
                decode_answer=json.dumps(_DECODE_ANSWER),
            )
        )
        async with run_process(find_program("nginx"), "-c", str(configuration), "-e", "stderr"):
            await wait_until_accepting(engines.decode_port)
            yield engines


async def wait_until_accepting(port: int, patience_s: float = 10.0) -> None:
    """Wait until something listens on a port of loopback.

    Raises:
        TimeoutError: nothing does.
    """
    async with asyncio.timeout(patience_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
