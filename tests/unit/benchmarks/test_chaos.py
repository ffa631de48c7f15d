"""The chaos run: its plan, and that each promise can be seen broken."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos import __main__ as command
from benchmarks.chaos.accounts import NEVER, Footprint, judge_engines, judge_growth
from benchmarks.chaos.clients import Clients, _Broken, _Cut, expect_words, judge_answer, write_body
from benchmarks.chaos.clients import judge_envelope as judge
from benchmarks.chaos.installation import EnvoyPlace, Installation, RouterPlace
from benchmarks.chaos.plan import Ask, Kind, Manner, draw_plan
from benchmarks.chaos.report import BEGIN, END, format_reports, write_table
from benchmarks.chaos.run import Report
from benchmarks.chaos.tally import Breach, Tally
from pdrouter.tools.envoy_config import Address
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.legs import SimulatedLeg

ASK = Ask(number=1, manner=Manner.PLAIN, words=3, tokens=2, patience=0.5)
SMALL = Footprint(resident_bytes=50 * 2**20, descriptors=30)


def make_installation() -> Installation:
    """An installation of which nothing runs."""
    prefill = {name: (SimulatedEngine(EngineConfig(role="prefill")),) for name in "ab"}
    decode = {name: (SimulatedEngine(EngineConfig(role="decode")),) for name in "ab"}
    envoy = EnvoyPlace("", Address("127.0.0.1", 1))
    places = RouterPlace({}), RouterPlace({})
    return Installation(prefill, decode, *places, envoy, Path("none"), "nixl")


def make_clients(installation: Installation) -> Clients:
    return Clients(installation, session=None, tally=Tally())  # type: ignore[arg-type]


def receive(engine: SimulatedEngine, request_id: str, body: bytes, status: int | None) -> None:
    """Let an engine have received a request."""
    headers = {"x-request-id": request_id}
    number = engine._log.add("POST", "/", headers, body, SimulatedLeg.WHOLE)
    engine._log.settle(number, "dropped" if status is None else "answered", status)


def make_report(tally: Tally) -> Report:
    plan = draw_plan(5, 10)
    return Report(plan, tally, SMALL, SMALL, Counter(), tries=20, seconds=60.0)


@given(st.integers(), st.integers(min_value=1, max_value=700))
def test_the_same_seed_is_the_same_plan(seed: int, requests: int) -> None:
    plan = draw_plan(seed, requests)
    assert plan == draw_plan(seed, requests)
    assert plan.fingerprint == draw_plan(seed, requests).fingerprint
    assert [ask.number for ask in plan.asks] == list(range(requests))
    assert plan.disturbances.keys() <= set(range(requests))
    if requests >= 100:
        assert {each.kind for each in plan.disturbances.values()} == set(Kind)


def test_another_seed_is_another_plan() -> None:
    assert len({draw_plan(seed, 100).fingerprint for seed in range(20)}) == 20


def test_the_right_answer_is_that_of_the_own_prompt() -> None:
    body = write_body(ASK, stream=False, tokens=2)
    words = expect_words(body, 2)
    assert words != expect_words(write_body(replace(ASK, number=2), stream=False, tokens=2), 2)

    def answer(*contents: str) -> bytes:
        return json.dumps(
            {"choices": [{"message": {"content": each}} for each in contents]}
        ).encode()

    judge_answer(answer(" ".join(words)), words)
    for wrong in (words[0], " ".join((*words, "more")), "another answer", ""):
        with pytest.raises(_Broken) as caught:
            judge_answer(answer(" ".join(words), wrong), words)
        assert caught.value.breach is Breach.WRONG_ANSWER


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"upstream connect error",
        b"[]",
        b'{"error": "text"}',
        b'{"error": {"message": "x"}}',
        b'{"error": {"message": "", "type": "x", "param": null, "code": "x"}}',
    ],
)
def test_an_error_that_clients_do_not_understand_breaks_a_promise(body: bytes) -> None:
    with pytest.raises(_Broken) as caught:
        judge(body)
    assert caught.value.breach is Breach.MALFORMED_ERROR


@pytest.mark.parametrize(
    ("code", "kind"), [('"model_not_found"', "model_not_found"), ("500", "of an engine")]
)
def test_an_error_is_named_by_its_code(code: str, kind: str) -> None:
    assert (
        judge(b'{"error": {"message":"m","type":"t","param":null,"code":%s}}' % code.encode())
        == kind
    )


def test_what_an_engine_cut_has_a_cause_and_what_nobody_cut_has_none() -> None:
    installation = make_installation()
    clients = make_clients(installation)
    receive(installation.decode["a"][0], "cut-2", b"", None)
    receive(installation.decode["a"][0], "whole", b"", 200)
    assert clients._has_cause(_Cut("in the answer", "cut"), begun=0.0)
    assert not clients._has_cause(_Cut("in the answer", "whole"), begun=0.0)
    assert not clients._has_cause(_Cut("before the answer", None), begun=0.0)
    with installation.outages.note():
        assert clients._has_cause(_Cut("before the answer", None), begun=0.0)


@pytest.mark.parametrize("together", [True, False])
def test_where_legs_run_together_either_is_a_cause(together: bool) -> None:
    installation = replace(make_installation(), together=together)
    receive(installation.prefill["a"][0], "cut", b"", None)
    assert make_clients(installation)._has_cause(_Cut("in the answer", "cut"), 0.0) is together


def test_each_kind_of_wire_is_run_as_it_is() -> None:
    together = {name for name, scenario in command.SCENARIOS.items() if scenario.together}
    assert together == {
        "SGLang",
        "NIXL push",
        "Mooncake",
        "P2P",
        "TensorRT-LLM, generation first",
    }


@pytest.mark.parametrize(
    ("decode_roleset", "altered", "breach"),
    [("a", False, None), ("b", False, Breach.MIXED_PAIR), ("a", True, Breach.ALTERED)],
)
def test_both_legs_have_the_bytes_and_the_roleset_of_the_request(
    decode_roleset: str, altered: bool, breach: Breach | None
) -> None:
    installation = make_installation()
    body = write_body(ASK, stream=False, tokens=2)
    receive(installation.prefill["b"][0], "id", body, 500)
    receive(installation.prefill["b"][0], "id-1", body, 200)
    receive(installation.prefill["a"][0], "id-2", body, 200)
    last = body.replace(b"1.10", b"1.1") if altered else body
    receive(installation.decode[decode_roleset][0], "id-2", last, 200)
    headers = {"x-request-id": "id", "x-pd-decision": "disaggregated"}
    if breach is None:
        make_clients(installation)._check_legs(headers)
        return
    with pytest.raises(_Broken) as caught:
        make_clients(installation)._check_legs(headers)
    assert caught.value.breach is breach


@pytest.mark.parametrize(
    ("after", "grown"),
    [
        (SMALL, 0),
        (replace(SMALL, resident_bytes=90 * 2**20), 1),
        (replace(SMALL, descriptors=47), 1),
    ],
)
def test_growth_is_seen(after: Footprint, grown: int) -> None:
    tally = Tally()
    judge_growth(SMALL, after, tally)
    assert tally.broken[Breach.GROWTH] == grown


def test_every_count_of_an_engine_that_must_stay_at_zero_is_seen() -> None:
    installation = make_installation()
    tally = Tally()
    judge_engines(installation, tally)
    assert not tally.broken
    metrics = installation.decode["a"][0]._metrics
    metrics.contract_violations.labels("handle_reused").inc()
    for counter in (metrics.prompt_mismatches, metrics.unexpected_role):
        counter.inc()
    metrics.duplicate_request_ids.inc()
    judge_engines(installation, tally)
    assert tally.broken[Breach.CONTRACT] == len(NEVER)


def test_the_table_has_a_column_for_each_run_and_all_errors(tmp_path: Path) -> None:
    first, second = Tally(answered=8), Tally(answered=9)
    first.errors["502 prefill_failed"] = 2
    second.note_broken(Breach.LEFT_IN_ROUTER, "a gauge: 1")
    table = format_reports({"one": make_report(first), "two": make_report(second)})
    assert table.startswith("| | one | two |\n|---|---:|---:|\n| Requests | 10 | 10 |\n")
    assert "| Error 502 prefill_failed | 2 | 0 |\n" in table
    assert "| Promises broken, of these and all others | 0 | 1 |\n" in table
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(page, table)
    assert page.read_text() == f"before\n{BEGIN}\n{table}{END}\nafter\n"
    page.write_text("no place")
    with pytest.raises(ValueError, match="no place"):
        write_table(page, table)


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_fails_if_a_promise_is_broken(
    broken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    async def run(*arguments: Any) -> Report:
        asked.append(
            SimpleNamespace(scenario=arguments[0], seed=arguments[1], requests=arguments[2])
        )
        tally = Tally(answered=10)
        if broken:
            tally.note_broken(Breach.WRONG_ANSWER, "request 7")
        return make_report(tally)

    monkeypatch.setattr(command, "run_chaos", run)
    assert command.main(["--requests", "10", "--seed", "5"]) == int(broken)
    assert [(each.scenario, each.seed, each.requests) for each in asked] == [
        (scenario, 5, 10) for scenario in command.SCENARIOS.values()
    ]
    told = capsys.readouterr().out
    assert ("all promises held" in told) is not broken
    assert ("request 7" in told) is broken


def test_the_docs_show_a_run_in_which_all_promises_held() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()
    shown = page.partition(BEGIN)[2].partition(END)[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", shown, re.MULTILINE))
    assert set(rows["Requests"].split(" | ")) == {"10,000"}
    assert set(rows["Promises broken, of these and all others"].split(" | ")) == {"0"}
    # It is what the command prints today.
    told = format_reports(dict.fromkeys(command.SCENARIOS, make_report(Tally())))
    assert shown.strip().splitlines()[0] == told.splitlines()[0]
    assert {name for name in rows if not name.startswith(("Error", "Client", "Cut"))} == set(
        dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", told, re.MULTILINE))
    )
