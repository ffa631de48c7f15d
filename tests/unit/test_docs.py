"""Pages that are made from code, or that must follow it."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pdrouter.cluster.endpoints_file import create_pods
from pdrouter.cluster.endpoints_text import (
    ENDPOINT_KEYS,
    FILE_KEYS,
    MODEL_KEYS,
    ROLESET_KEYS,
    EndpointsInvalid,
    parse_endpoints,
)
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.commands.front import write_curl
from pdrouter.engines.registry import WIRES
from pdrouter.load.ledger import Ledger
from pdrouter.openai.headers import FORWARDED_TO_SIDE_LEGS
from pdrouter.openai.paths import ENDPOINTS, Forms
from pdrouter.settings.choices import CONNECTOR_NAMES
from pdrouter.telemetry.journal import JournalMetrics
from pdrouter.telemetry.page import render_page
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.workers.metrics_page import describe_workers

DOCS = Path(__file__).parents[2] / "docs"


def read(name: str) -> str:
    return (DOCS / name).read_text()


def test_pages_that_are_made_from_code_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert {name: read(name) == render() for name, render in generate.PAGES.items()} == {
        "aibrix-names.md": True,
        "configuration.md": True,
        "doctor.md": True,
        "requests.md": True,
    }


def test_every_metric_is_explained_and_no_other() -> None:
    page = RequestTelemetry(PodCache(), Ledger()).metrics.render().decode()
    page += render_page(describe_workers({0: 1}, 1)).decode()
    page += render_page(JournalMetrics(Counter(noted=1)).collect()).decode()
    exported = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    text = read("metrics.md")
    first_cells = "".join(re.findall(r"^\| (`[^|]+)", text, re.MULTILINE))
    explained = set(re.findall(r"`(\w+)`", first_cells) + re.findall(r"`(pdrouter_\w+)`", text))
    assert explained == exported


def test_the_endpoints_file_is_explained_key_by_key() -> None:
    text = read("endpoints-file.md")
    tables = re.findall(r"\| Key \| Meaning \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    explained = [re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) for table in tables]
    assert explained == [
        list(keys) for keys in (FILE_KEYS, MODEL_KEYS, ROLESET_KEYS, ENDPOINT_KEYS)
    ]
    assert all(f"`{name}`" in text for name in (*WIRES, *CONNECTOR_NAMES))


def test_the_endpoints_file_that_is_shown_is_good_and_the_mistakes_are_those_of_the_code() -> None:
    text = read("endpoints-file.md")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    endpoints = parse_endpoints(example, WIRES)
    assert {each.host for each in endpoints.endpoints} > endpoints.host_names != frozenset()
    assert endpoints.remarks == ()
    broken = example.replace("prefill:", "prefil:", 1).replace("name: rack-1", "name: a", 1)
    with pytest.raises(EndpointsInvalid, match="did you mean 'prefill'") as caught:
        parse_endpoints(broken, WIRES)
    (shown,) = re.findall(r"^pdrouter: endpoints.yaml: (.*?); ", text, re.MULTILINE)
    without_line = re.compile(r"line \d+")
    assert without_line.sub("line", str(caught.value)) == without_line.sub("line", shown)


_BODIES = {Forms.NEVER: "JSON", Forms.ALLOWED: "form or JSON", Forms.ALWAYS: "form"}
_SERVED_BY = {1: "one pod", 2: "a prefill and a decode pod"}


def test_the_table_of_paths_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| (`/[^|]+) \| ([^|]+) \| ([^|]+) \|$", read("requests.md"), re.MULTILINE)
    listed = [
        (path, served_by, body)
        for paths, served_by, body in rows
        for path in re.findall(r"`([^`]+)`", paths)
    ]
    assert sorted(listed) == sorted(
        (path, _SERVED_BY[endpoint.legs], _BODIES[endpoint.forms])
        for path, endpoint in ENDPOINTS.items()
    )


def test_every_header_that_goes_to_prefill_is_listed() -> None:
    text = read("requests.md")
    assert [name for name in FORWARDED_TO_SIDE_LEGS if f"`{name}`" not in text] == []


def test_links_lead_somewhere() -> None:
    root = DOCS.parent
    pages = [*DOCS.glob("*.md"), root / "README.md", root / "CONTRIBUTING.md"]
    broken = [
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_each_table_has_a_head() -> None:
    broken = []
    for page in DOCS.glob("*.md"):
        lines = ["", *page.read_text().splitlines(), ""]
        for number in range(1, len(lines) - 1):
            begins = lines[number].startswith("|") and not lines[number - 1].startswith("|")
            if begins and not re.fullmatch(r"\|[-:| ]+\|", lines[number + 1]):
                broken.append((page.name, number))
    assert broken == []


def test_the_readme_shows_an_endpoints_file_and_the_curl_that_up_shows() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    (example,) = re.findall(r"<<'END'\n(.*?)^END$", readme, re.DOTALL | re.MULTILINE)
    endpoints = parse_endpoints(example, WIRES)
    assert endpoints.remarks == ()
    (name,) = {each.model for each in endpoints.endpoints}
    view = ClusterView.build(create_pods(endpoints, {}))
    assert write_curl("http://127.0.0.1:10080", view) in readme.splitlines()
    assert f"--served-model-name {name}" in readme
    (transfer,) = re.findall(r"--kv-transfer-config '(.*)'", readme)
    assert json.loads(transfer) == {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
