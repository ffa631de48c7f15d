"""Real Redis or Valkey servers on loopback, which a test may kill, stop and replace."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fakekube import Certificate
from loopback import find_free_ports
from waiting import WAIT_S

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(
    PROGRAM is None,
    reason="no redis-server: on Debian, `apt-get install redis-server` gives one",
)
"""Marks tests that ask a real server. `.ci/run` installs it."""

MASTER = "shared"
"""What sentinels call the server that they watch."""


class RedisServer:
    """One server. It keeps nothing on disk: started again, it has forgotten everything."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int = 0,
        password: str = "",
        certificate: Certificate | None = None,
        sentinel: bool = False,
    ) -> None:
        self.port = port or find_free_ports(1)
        self.password = password
        self.tls = certificate is not None
        self._sentinel = sentinel
        self._config = directory / f"redis-{self.port}.conf"
        self._log = directory / f"redis-{self.port}.log"
        plain, secure = (0, self.port) if certificate else (self.port, 0)
        lines = [f"port {plain}", "bind 127.0.0.1", f"dir {directory}", f"logfile {self._log}"]
        if not sentinel:
            lines += ['save ""', "appendonly no", "repl-diskless-sync-delay 0"]
        if certificate is not None:
            lines += [
                f"tls-port {secure}",
                f"tls-cert-file {certificate.cert}",
                f"tls-key-file {certificate.key}",
                f"tls-ca-cert-file {certificate.ca}",
                "tls-auth-clients no",
            ]
        if password:
            lines += [f"requirepass {password}", f"masterauth {password}"]
        self._config.write_text("\n".join([*lines, *options, ""]))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is, and its password."""
        scheme = "rediss" if self.tls else "redis"
        asking = f":{self.password}@" if self.password else ""
        return f"{scheme}://{asking}127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, empty; return once it answers."""
        assert PROGRAM is not None
        sentinel = ["--sentinel"] if self._sentinel else []
        self._process = subprocess.Popen([PROGRAM, self._config, *sentinel])
        until = time.monotonic() + WAIT_S
        while not self._listens():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.005)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), WAIT_S).close()
        except ConnectionRefusedError:
            return False
        return True

    def kill(self) -> None:
        """End it without a word, as a node's failure does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None

    def hang(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> str:
        """Ask it by `redis-cli`, as an operator would."""
        program = shutil.which("redis-cli") or shutil.which("valkey-cli")
        assert program is not None
        tls = ["--tls", "--insecure"] if self.tls else []
        done = subprocess.run(
            [program, "-h", "127.0.0.1", "-p", str(self.port), *tls, *command],
            env={"REDISCLI_AUTH": self.password} if self.password else {},
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_S,
        )
        return done.stdout.strip()


@contextmanager
def run_redis(
    *options: str, password: str = "", certificate: Certificate | None = None
) -> Iterator[RedisServer]:
    """Run a server while the context lasts; options are lines of its configuration."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-redis-") as directory:
        server = RedisServer(Path(directory), *options, password=password, certificate=certificate)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def run_sentinel() -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """Run a server, a replica of it, and a sentinel that lets the one take the other's place."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-redis-") as name, ExitStack() as stack:
        directory = Path(name)
        server = _start(stack, RedisServer(directory))
        replica = _start(
            stack,
            RedisServer(directory, f"replicaof 127.0.0.1 {server.port}"),
        )
        wait_for(replica, "info", "replication", text="master_link_status:up")
        sentinel = _start(
            stack,
            RedisServer(
                directory,
                f"sentinel monitor {MASTER} 127.0.0.1 {server.port} 1",
                f"sentinel down-after-milliseconds {MASTER} 300",
                f"sentinel failover-timeout {MASTER} 2000",
                sentinel=True,
            ),
        )
        wait_for(sentinel, "sentinel", "replicas", MASTER, text=str(replica.port))
        yield server, replica, sentinel


@contextmanager
def run_cluster(nodes: int = 3) -> Iterator[Sequence[RedisServer]]:
    """Run a cluster of so many nodes, each with a part of the keys."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-redis-") as name, ExitStack() as stack:
        servers = [
            _start(
                stack,
                RedisServer(
                    Path(name),
                    "cluster-enabled yes",
                    f"cluster-port {port + nodes}",
                    f"cluster-config-file nodes-{port}.conf",
                    port=port,
                ),
            )
            for first in [find_free_ports(2 * nodes)]
            for port in range(first, first + nodes)
        ]
        slots = 16384
        for number, server in enumerate(servers):
            low, high = slots * number // nodes, slots * (number + 1) // nodes - 1
            server.ask("cluster", "addslotsrange", str(low), str(high))
            server.ask("cluster", "set-config-epoch", str(number + 1))
            meet = (str(servers[0].port), str(servers[0].port + nodes))
            if number:
                server.ask("cluster", "meet", "127.0.0.1", *meet)
        for server in servers:
            wait_for(server, "cluster", "info", text="cluster_state:ok")
            wait_for(server, "cluster", "info", text=f"cluster_size:{nodes}")
        yield servers


def _start(stack: ExitStack, server: RedisServer) -> RedisServer:
    server.start()
    stack.callback(server.kill)
    return server


def wait_for(server: RedisServer, *command: str, text: str) -> None:
    """Ask until a text is in the answer.

    A server that becomes a master, a replica or a part of a cluster closes connections, a
    question's among them: what it did not answer is asked again.
    """
    until = time.monotonic() + WAIT_S
    while True:
        try:
            answer = server.ask(*command)
        except subprocess.CalledProcessError as error:
            answer = f"{error}: {error.stderr}"
        else:
            if text in answer:
                return
        assert time.monotonic() < until, answer
        time.sleep(0.02)
