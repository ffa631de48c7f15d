"""The `pdrouter` command: what it prints, and its exit codes."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from loopback import find_free_ports

from pdrouter import __version__
from pdrouter.cli import main
from pdrouter.settings import declarations, describe_settings

ROOT = Path(__file__).parents[3]
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
    ("arguments", "usage", "message"),
    [
        ([], "", "required: COMMAND"),
        (["nothing"], "", "there is no command 'nothing'"),
        (["serv"], "", "there is no command 'serv': did you mean serve?"),
        (["envoyconfig"], "", "did you mean envoy-config?"),
        (["--endpoints", "f"], "", "such as: pdrouter serve --endpoints"),
        (["serve", "--nothing"], " serve", "unknown argument --nothing\n"),
        (["serve", "x"], " serve", "unknown argument x\n"),
        (["serve", "--endpoits", "x"], " serve", "--endpoits: did you mean --endpoints?\n"),
        (["serve", "--grpc-bnd=:1"], " serve", "--grpc-bnd: did you mean --grpc-bind?\n"),
        (["serve", "--log_levl=info"], " serve", "--log_levl: did you mean --log-level?\n"),
        (["demo", "--kep"], " demo", "--kep: did you mean --keep?"),
        (["settings", "x"], " settings", "unknown argument x"),
    ],
)
def test_a_wrong_call_shows_the_usage_of_its_command_and_what_was_meant(
    arguments: list[str], usage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: pdrouter{usage} [-h]")
    assert f"pdrouter{usage}: error: " in error
    assert message in error


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    text = capsys.readouterr().out
    for command in ("serve", "up", "settings", "key", "envoy-config", "doctor", "engine", "demo"):
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


@pytest.mark.parametrize(
    "command", ["up", "settings", "key", "worker", "envoy-config", "doctor", "engine", "demo"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: pdrouter {command}")


def test_settings_prints_what_they_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--describe"]) == 0
    assert capsys.readouterr().out == describe_settings()


def test_settings_shows_what_is_in_force_and_where_it_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTING_ALGORITHM", "least_request")
    monkeypatch.setenv("PDROUTER_WORKERS", "2")
    monkeypatch.setenv("PDROUTER_MAX_WAIT", " ")
    monkeypatch.setenv("AIBRIX_AUTH_BEARER_TOKEN", "hunter2")
    monkeypatch.setenv("PDROUTER_MAXWAIT", "3")
    monkeypatch.setenv("AIBRIX_TTFT_THRESHOLD_S", "3")
    assert main(["settings", "--workers", "3", "--endpoints", "pods.yaml"]) == 0
    shown = capsys.readouterr()
    head, *lines = (line.split() for line in shown.out.splitlines())
    assert head == ["SETTING", "VALUE", "FROM"]
    rows = {name: (value, source) for name, value, source in lines}
    assert set(rows) == {each.variable for each in declarations().values()}
    assert rows.pop("PDROUTER_MAX_HELD_BYTES")[1] == "memory-limit"
    given = {name: row for name, row in rows.items() if row[1] != "default"}
    assert given == {
        "PDROUTER_ENDPOINTS": ("pods.yaml", "--endpoints"),
        "ROUTING_ALGORITHM": ("least-request", "environment"),
        "PDROUTER_WORKERS": ("3", "--workers"),
        "AIBRIX_AUTH_BEARER_TOKEN": ("(secret)", "environment"),
    }
    assert rows["PDROUTER_MAX_WAIT"] == ("-", "default")
    assert rows["PDROUTER_GRPC_BIND"] == ("0.0.0.0:50052", "default")
    assert "hunter2" not in shown.out + shown.err
    unknown, unused = shown.err.splitlines()
    assert unknown.endswith("did you mean PDROUTER_MAX_WAIT?")
    assert unused.endswith("without effect here: AIBRIX_TTFT_THRESHOLD_S")


def test_settings_shows_what_is_found_where_one_is_unset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    context = {"name": "c", "context": {"cluster": "x", "user": "u", "namespace": "serving"}}
    parts = {"clusters": [{"name": "x", "cluster": {}}], "users": [{"name": "u", "user": {}}]}
    usual.write_text(json.dumps({**parts, "contexts": [context], "current-context": "c"}))
    monkeypatch.setenv("HOME", str(tmp_path))

    def show(*options: str) -> dict[str, tuple[str, str]]:
        assert main(["settings", "--json", "--kubernetes", *options]) == 0
        shown = json.loads(capsys.readouterr().out)["settings"]
        return {each["variable"]: (each["value"], each["source"]) for each in shown}

    found = show()
    assert found["KUBECONFIG"] == (str(usual), "home-directory")
    assert found["PDROUTER_NAMESPACES"] == ("serving", "file")
    assert int(found["PDROUTER_MAX_HELD_BYTES"][0]) >= 0
    given = show("--namespaces", "other", "--kubeconfig", "broken")
    assert given["KUBECONFIG"] == ("broken", "--kubeconfig")
    assert given["PDROUTER_NAMESPACES"] == ("other", "--namespaces")
    assert show("--kubeconfig", "broken")["PDROUTER_NAMESPACES"] == ("", "default")


def test_settings_that_would_stop_the_start_are_said_and_shown_as_they_would_not_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDROUTER_WORKERS", "many")
    monkeypatch.setenv("PDROUTER_TLS_KEY", "key.pem")
    assert main(["settings", "--json"]) == 2
    shown = capsys.readouterr()
    settings = {each["variable"]: each for each in json.loads(shown.out)["settings"]}
    assert settings["PDROUTER_WORKERS"]["value"] == "1"
    assert settings["PDROUTER_WORKERS"]["source"] == "default"
    assert settings["PDROUTER_TLS_KEY"]["value"] == "key.pem"
    assert all(each["doc"] for each in settings.values())
    refused, conflict = shown.err.splitlines()
    assert refused.startswith("pdrouter: PDROUTER_WORKERS='many' is not allowed")
    assert "go together" in conflict


def test_settings_prints_what_the_guide_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTING_ALGORITHM", "pd")
    monkeypatch.setenv("PDROUTER_DRAIN", "5m")
    assert main(["settings", "--endpoints", "endpoints.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines(keepends=True)
    example = "".join(line for line in lines if re.search("FROM|environment|--", line))
    assert example in (ROOT / "docs" / "configuration.md").read_text()


def test_the_router_does_not_carry_what_other_commands_need() -> None:
    words = ["worker", "--number", "0", "--admin-socket", "s", "--journals", "3"]
    modules = list_modules(f"c._parse({words})")
    assert "pdrouter.app" in modules
    assert not {"envoy_data_plane", "httpx", "openai", "pdrouter.tools.simulation.engine"} & modules


def test_the_supervisor_does_not_carry_what_its_workers_need() -> None:
    modules = list_modules("c._parse(['serve']); import pdrouter.workers.supervisor")
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


@pytest.mark.parametrize(
    ("option", "variable"),
    [("--http-bind", "PDROUTER_HTTP_BIND"), ("--grpc-bind", "PDROUTER_GRPC_BIND")],
)
def test_a_port_that_is_taken_stops_the_start_with_the_name_of_its_setting(
    option: str, variable: str, endpoints: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with taken_port() as port:
        code = main(["serve", "--endpoints", endpoints, *ANY, option, f"127.0.0.1:{port}"])
    assert code == 1
    assert capsys.readouterr().err == (
        f"pdrouter: cannot listen on 127.0.0.1:{port}: the port is taken by another process;"
        f" choose another with {variable} ({option})\n"
    )


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("192.0.2.1:0", "cannot listen on 192.0.2.1:0: this machine has no such address"),
        ("nothing.invalid:0", "nothing.invalid is no address of this machine"),
    ],
)
@pytest.mark.parametrize("option", ["--http-bind", "--grpc-bind"])
def test_an_address_that_cannot_be_listened_on_is_explained(
    option: str, bind: str, message: str, endpoints: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--endpoints", endpoints, *ANY, option, bind]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert option in error
    assert error.count("\n") == 1


def test_outside_of_a_cluster_the_option_that_says_which_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # These tests may run in a pod.
    monkeypatch.setattr("pdrouter.cluster.kubernetes.api._OWN_NAMESPACE", tmp_path / "namespace")
    assert main(["serve", "--kubernetes", *ANY]) == 1
    error = capsys.readouterr().err
    assert "no service account of a pod" in error
    assert "--kubeconfig FILE" in error
    assert error.count("\n") == 1
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text("current-context: missing")
    assert main(["serve", "--kubernetes", *ANY]) == 1
    assert f"{tmp_path}/.kube/config: " in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("number", "lame_duck"),
    # At a terminal, nobody else is about to send requests.
    [(signal.SIGTERM, "0"), (signal.SIGINT, "300")],
)
def test_the_router_serves_until_it_is_told_to_stop(
    number: signal.Signals, lame_duck: str, endpoints: str
) -> None:
    environment = os.environ | {
        "ROUTING_ALGORITHM": "pd",
        "PDROUTER_LAME_DUCK": lame_duck,
        "PDROUTER_MAXWAIT": "3",
    }
    with serve(endpoints, environment, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert '"nearest":"PDROUTER_MAX_WAIT"' in process.stdout.readline()
        assert '"event":"serving"' in process.stdout.readline()
        process.send_signal(number)
        output, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert '"event":"stopped"' in output
    assert error == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_at_a_terminal_the_first_line_is_for_people(workers: int, endpoints: str) -> None:
    environment = os.environ | {
        "ROUTING_ALGORITHM": "pd",
        "PDROUTER_LAME_DUCK": "300",
        "PDROUTER_WORKERS": str(workers),
    }
    grpc = "127.0.0.1:0" if workers == 1 else f"127.0.0.1:{find_free_ports(workers)}"
    terminal, own_end = os.openpty()
    try:
        with serve(endpoints, environment, "--grpc-bind", grpc, stderr=own_end) as process:
            line = read_line(terminal)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=WAIT_S)
    finally:
        os.close(terminal)
        os.close(own_end)
    assert process.returncode == 0
    served = "m (1 both)" if workers == 1 else "with 2 workers"
    assert line.startswith(f"pdrouter {__version__} serves {served}: Envoy connects to 127.0.0.1:")
    assert re.search(r"see http://127\.0\.0\.1:\d+/debug/state", line)
    # The log goes elsewhere, and has its line.
    assert '"event":"serving"' in output


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["demo", "--listen=127.0.0.1:{}"], "--listen"),
        (["engine", "--role=both", "--host=127.0.0.1", "--port={}"], "--host or --port"),
    ],
    ids=["demo", "engine"],
)
def test_a_port_that_is_taken_is_named_by_every_command_that_listens(
    command: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main([word.format(port) for word in command]) == 1
    assert capsys.readouterr().err == (
        f"pdrouter {command[0]}: cannot listen on 127.0.0.1:{port}: the port is taken by another"
        f" process; choose another with {named}\n"
    )


def test_a_port_that_a_worker_cannot_have_is_named_too(endpoints: str) -> None:
    first = find_free_ports(2)
    with closing(socket.create_server(("127.0.0.1", first + 1))):
        environment = os.environ | {"PDROUTER_WORKERS": "2"}
        options = ("--grpc-bind", f"127.0.0.1:{first}")
        with serve(endpoints, environment, *options, stderr=subprocess.PIPE) as process:
            _, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    taken = f"pdrouter: worker 1: cannot listen on 127.0.0.1:{first + 1}: the port is taken"
    hint = " by another process; choose another with PDROUTER_GRPC_BIND (--grpc-bind)"
    assert error.splitlines() == [
        taken + hint,
        "pdrouter: worker 1 ended with exit code 1 before it served",
    ]


@contextmanager
def serve(
    endpoints: str, environment: Mapping[str, str], *options: str, stderr: int
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pdrouter", "serve", "--endpoints", endpoints, *ANY, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(terminal: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([terminal], [], [], WAIT_S)
        assert ready, line
        line += os.read(terminal, 1)
    return line.decode().strip()
