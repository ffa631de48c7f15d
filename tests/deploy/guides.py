"""The guides in `docs/` as something to run: their commands, and what these should print.

A shell finds only the programs that it is given here: a guide cannot use a command that nobody has
decided about. Programs that need a cloud or the internet are stand-ins, which do nothing.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manifests import ROOT

DOCS = ROOT / "docs"
PATIENCE_S = 60.0

REAL = ("base64", "bash", "cat", "curl", "dirname", "grep", "head", "mkdir", "sed", "tail")
"""Run as they are, beside kubectl and pdrouter."""

STAND_INS: Mapping[str, str] = {
    "aws": """case "$*" in
  *describe-cluster*) echo sg-1 ;;
  *create-launch-template*) printf 'lt-0123456789abcdef0\\t1\\n' ;;
esac""",
    "docker": "",
    "helm": "",
    "kind": "",
    "pip": "",
}
"""What is not run, and what a script gets to see instead."""

KUBECTL_STAND_INS: Mapping[str, str] = {
    "kubectl apply --server-side -f https://": "exit 0",
    "kubectl port-forward": "exit 0",
    "kubectl logs": 'case "$*" in *app=pdrouter*) exec cat "$ROUTER_LOG" ;; esac; exit 0',
}
"""What kubectl is not asked for, by how the command begins, and what happens instead."""

_MASKS = (
    (r"\b(prefill|decode|pdrouter)-[0-9a-f]{8,10}-[0-9a-z]{5}\b", r"\1-POD"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
    (r"\b\d+\.\d+\.\d+\.\d+(:\d+)?\b", "ADDRESS"),
    (r"\b\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)", "TIME"),
    (r'("\w+_ms": ?)[\d.]+', r"\1N"),
    (r'("created": ?)\d+', r"\1N"),
    (r"\b\d+[smhd]\b(?=\s*(\w+)?$)", "AGE"),
)
"""What differs from run to run."""


@dataclass(frozen=True, slots=True)
class Step:
    """A block of commands.

    Attributes:
        page: name of the page.
        line: where it begins.
        script: the commands.
        expected: what they print, as far as the page says so.
        json: whether that is JSON, written for people to read.
    """

    page: str
    line: int
    script: str
    expected: str | None
    json: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.script}"


def read_steps(name: str) -> list[Step]:
    """Return the commands of a page; a block right after a block of commands is their output."""
    text = (DOCS / name).read_text()
    fences = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    steps = []
    for index, fence in enumerate(fences):
        if fence[1] != "bash":
            continue
        following = fences[index + 1] if index + 1 < len(fences) else None
        expected = None
        if following and following[1] != "bash":
            between = text[fence.end() : following.start()]
            expected = None if between.strip() else following[2]
        line = text.count("\n", 0, fence.start()) + 1
        is_json = expected is not None and following is not None and following[1] == "json"
        steps.append(Step(name, line, fence[2], expected, is_json))
    return steps


def mask(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run."""
    lines = []
    for line in text.strip().splitlines():
        masked = line.rstrip()
        for pattern, replacement in _MASKS:
            masked = re.sub(pattern, replacement, masked)
        lines.append(" ".join(masked.split()))
    return lines


class Shell:
    """Runs steps one after the other, as a user's terminal does, in a copy of `deploy/`.

    Attributes:
        directory: where the steps are run.
        router_log: what `kubectl logs` shows of the router.
    """

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory / "checkout"
        self.router_log = directory / "router.log"
        self._home = directory / "home"
        self._programs = directory / "programs"
        self._state = directory / "state"
        shutil.copytree(ROOT / "deploy", self.directory / "deploy")
        for path in (self._home, self._programs):
            path.mkdir()
        for path in (self.router_log, self._state):
            path.touch()
        self._install()
        self._environment = {
            "HOME": str(self._home),
            "PATH": str(self._programs),
            "PYTHONPATH": str(ROOT),
            "ROUTER_LOG": str(self.router_log),
            **environment,
        }

    def _install(self) -> None:
        for name in REAL:
            (self._programs / name).symlink_to(shutil.which(name) or name)
        for name, body in STAND_INS.items():
            self._write(name, body)
        self._write("pdrouter", f'exec {sys.executable} -m pdrouter "$@"')
        kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts")) or "kubectl"
        cases = "\n".join(
            f"  {shlex.quote(start.removeprefix('kubectl '))}*) {body} ;;"
            for start, body in KUBECTL_STAND_INS.items()
        )
        self._write("kubectl", f'case "$*" in\n{cases}\nesac\nexec {kubectl} "$@"')

    def _write(self, name: str, body: str) -> None:
        path = self._programs / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def redirect(self, forwarded: Mapping[int, str]) -> None:
        """Let curl connect to these addresses where a guide says `localhost:PORT`."""
        (self._home / ".curlrc").write_text(
            "".join(
                f'connect-to = "localhost:{port}:{address}"\n'
                for port, address in forwarded.items()
            )
        )

    async def run(self, step: Step) -> str:
        """Run a step, with the variables that former ones have exported.

        Returns:
            Its standard output.
        """
        script = f". {self._state}\n{step.script}\nexport -p > {self._state}\n"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=self.directory,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{step}\n{output.decode()}\n{errors.decode()}"
        return output.decode()

    async def check(self, step: Step) -> None:
        """Run a step, and compare what it prints with what its page says."""
        printed = await self.run(step)
        if step.expected is not None:
            shown = json.dumps(json.loads(printed), indent=1) if step.json else printed
            wanted = json.dumps(json.loads(step.expected), indent=1) if step.json else step.expected
            assert mask(shown) == mask(wanted), f"{step}\n{printed}"


def can_run_guides() -> bool:
    """Return whether this machine has what the commands of the guides need."""
    return all(shutil.which(name) for name in REAL) and os.access("/bin/bash", os.X_OK)
