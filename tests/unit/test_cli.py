"""The `pdrouter` command: what it prints, and its exit codes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pdrouter import __version__
from pdrouter.cli import main
from pdrouter.settings import declarations, describe_settings

WAIT_S = 30.0
ENDPOINTS = "models: [{name: m, endpoints: ['127.0.0.1:9']}]"
ANY = ["--grpc-bind", "127.0.0.1:0", "--http-bind", "127.0.0.1:0"]


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for declaration in declarations().values():
        monkeypatch.delenv(declaration.variable, raising=False)


@pytest.fixture
def endpoints(tmp_path: Path) -> str:
    path = tmp_path / "endpoints.yaml"
    path.write_text(ENDPOINTS)
    return str(path)


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"pdrouter {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["serve", "--nothing"],
        ["serve", "x"],
        ["--endpoints", "f"],
        ["settings", "x"],
    ],
)
def test_a_wrong_call_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    assert "usage: pdrouter" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for command in ("serve", "settings", "envoy-config", "engine", "demo"):
        assert f"\n    {command}" in text


def test_help_of_serve_names_every_option_with_its_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("serve", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for declaration in declarations().values():
        if declaration.option:
            assert declaration.option in text
            assert f"[{declaration.variable}]" in text


@pytest.mark.parametrize("command", ["settings", "worker", "envoy-config", "engine", "demo"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: pdrouter {command}")


def test_settings_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == describe_settings()


def test_the_router_does_not_carry_what_other_commands_need() -> None:
    modules = list_modules("c._create_parser('worker')")
    assert "pdrouter.app" in modules
    assert not {"envoy_data_plane", "httpx", "openai", "pdrouter.simulation.engine"} & modules


def test_the_supervisor_does_not_carry_what_its_workers_need() -> None:
    modules = list_modules("c._create_parser('serve'); import pdrouter.workers.supervisor")
    assert not {"pdrouter.app", "grpc", "kubernetes_asyncio"} & modules


def list_modules(code: str) -> set[str]:
    """Return the modules that a process has loaded after this code, where `c` is the CLI."""
    program = f"import sys, pdrouter.cli as c; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_command_whose_packages_are_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(name, name=missing)

    monkeypatch.setattr("pdrouter.cli.import_module", fail)
    missing = "openai"
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "pdrouter: openai is missing: install pdrouter[demo]\n"
    missing = "pdrouter.commands.nothing"
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


# --- serve ---


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "there is no source of pods"),
        (["--grpc-bind", "x"], {}, "--grpc-bind='x' is not allowed: it must be host:port"),
        ([], {"ROUTING_ALGORITHM": "best"}, "ROUTING_ALGORITHM='best' is not allowed"),
        ([], {"PDROUTER_TLS_KEY": "k"}, "PDROUTER_TLS_CERTIFICATE and PDROUTER_TLS_KEY"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line_and_exit_code_2(
    arguments: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pdrouter: ")
    assert message in error
    assert error.count("\n") == 1


def test_all_bad_settings_and_unknown_names_are_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PDROUTER_DRAIN", "PDROUTER_MAXWAIT", "PDROUTER_WORKERS"):
        monkeypatch.setenv(name, "often")
    assert main(["serve", "--log-level", "loud"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1].partition("=")[0] for line in lines] == [
        "PDROUTER_WORKERS",
        "PDROUTER_DRAIN",
        "--log-level",
        "PDROUTER_MAXWAIT",
    ]
    assert "did you mean PDROUTER_MAX_WAIT?" in lines[-1]


def test_envoy_config_says_which_names_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PDROUTER_WORKER", "4")
    assert main(["envoy-config"]) == 0
    output = capsys.readouterr()
    assert "did you mean PDROUTER_WORKERS?" in output.err
    assert "PDROUTER_WORKER" not in output.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("models: [", "not valid YAML"),
        ("models: 1", "line 1: 'models' must be a list"),
    ],
)
def test_endpoints_that_cannot_be_read_stop_the_start_with_one_line_and_exit_code_1(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pods.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["serve", "--endpoints", str(path), *ANY]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pdrouter: {path}: ")
    assert message in error
    assert error.count("\n") == 1


@contextmanager
def taken_port() -> Iterator[int]:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("option", ["--http-bind", "--grpc-bind"])
def test_a_port_that_is_taken_stops_the_start_with_one_line_and_exit_code_1(
    option: str, endpoints: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with taken_port() as port:
        code = main(["serve", "--endpoints", endpoints, *ANY, option, f"127.0.0.1:{port}"])
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("pdrouter: ")
    assert str(port) in error
    assert error.count("\n") == 1


def test_certificates_that_cannot_be_read_stop_the_start_with_one_line_and_exit_code_1(
    endpoints: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PDROUTER_TLS_CERTIFICATE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("PDROUTER_TLS_KEY", str(tmp_path / "missing.key"))
    assert main(["serve", "--endpoints", endpoints, *ANY]) == 1
    error = capsys.readouterr().err
    assert "missing.pem" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_router_serves_until_it_is_told_to_stop(number: signal.Signals, endpoints: str) -> None:
    environment = os.environ | {"PDROUTER_LAME_DUCK": "0", "ROUTING_ALGORITM": "pd"}
    with subprocess.Popen(
        [sys.executable, "-m", "pdrouter", "serve", "--endpoints", endpoints, *ANY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert '"nearest":"ROUTING_ALGORITHM"' in process.stdout.readline()
            assert '"event":"serving"' in process.stdout.readline()
            process.send_signal(number)
            output, error = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert '"event":"stopped"' in output
    assert error == ""
