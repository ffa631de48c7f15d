"""The doctor on an endpoints file: what engines say of themselves, and whether they pair."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from certificates import issue
from loopback import find_free_ports, hang, listen, reset
from waiting import wait_until

from pdrouter.cli import main
from pdrouter.cluster.endpoints_file import create_pods
from pdrouter.cluster.endpoints_text import parse_endpoints
from pdrouter.engine_http.tls import EngineTls, EngineTlsRules
from pdrouter.engines.registry import WIRES, SplitRules, Splits
from pdrouter.tools.doctor.asking import ask_engines
from pdrouter.tools.doctor.checks.endpoints import ENDPOINT_CHECKS
from pdrouter.tools.doctor.diagnosis import Diagnosis, diagnose_engines
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

MODEL = "llama"
_RULES = SplitRules()


def describe(
    *rolesets: Mapping[str, list[str]], whole: list[str] | None = None, **members: str
) -> str:
    """An endpoints file."""
    model: dict[str, Any] = {"name": MODEL, **members}
    if rolesets:
        model["rolesets"] = [
            {"name": f"set-{number}", **roleset} for number, roleset in enumerate(rolesets)
        ]
    if whole:
        model["endpoints"] = whole
    return yaml.safe_dump({"models": [model]})


async def examine(text: str, rules: SplitRules = _RULES, tls: EngineTls | None = None) -> Diagnosis:
    pods = create_pods(parse_endpoints(text, WIRES), {})
    return diagnose_engines(await ask_engines(pods, Splits(rules=rules), tls))


def found(diagnosis: Diagnosis) -> dict[str, str]:
    """Problem and fix by code."""
    return {
        each.check.code: f"{each.defect.problem} {each.defect.fix}" for each in diagnosis.findings
    }


@asynccontextmanager
async def run(*configs: EngineConfig, faults: tuple[Fault, ...] = ()) -> AsyncIterator[list[str]]:
    """Run engines; their addresses."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(SimulatedEngine(config, *faults)) for config in configs
        ]
        yield [engine.address for engine in engines]


def engine(role: str, **options: Any) -> EngineConfig:
    return EngineConfig(**{"role": role, "models": (MODEL,), "itl_ms": 0.0, **options})


@asynccontextmanager
async def answer(pages: Mapping[str, tuple[int, str]]) -> AsyncIterator[str]:
    """Run a server with these pages, by path; its address."""

    async def show(request: web.Request) -> web.Response:
        status, text = pages.get(request.path, (404, "nothing here"))
        return web.Response(status=status, text=text)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", show)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


def list_models(**card: Any) -> tuple[int, str]:
    return 200, json.dumps({"data": [{"id": MODEL, **card}]})


async def test_engines_that_work_are_described_and_nothing_is_found() -> None:
    configs = [engine("prefill"), engine("prefill"), engine("decode")]
    async with run(*configs, engine("both")) as (one, two, decode, whole):
        diagnosis = await examine(
            describe({"prefill": [one, two], "decode": [decode]}, whole=[whole])
        )

    assert diagnosis.findings == ()
    assert f"{one} serves llama (prefill), vllm" in diagnosis.facts[1]
    assert "32768 tokens" in diagnosis.facts[0]
    # Each prefill engine is tried.
    assert {fact for fact in diagnosis.facts if "decoded what" in fact} == {
        f"{decode} decoded what {prefill} had prefilled (llama)" for prefill in (one, two)
    }


async def test_a_model_that_the_router_cannot_speak_to_is_found_and_not_tried() -> None:
    async with run(engine("prefill"), engine("decode")) as (prefill, decode):
        text = describe({"prefill": [prefill], "decode": [decode]})
        diagnosis = await examine(text.replace("name: llama", "name: llama\n  engine: tgi"))

    problem = found(diagnosis)["model-unsupported"]
    assert problem.startswith("engine 'tgi' is not supported: it is none of vllm")
    assert not [fact for fact in diagnosis.facts if "decoded what" in fact]


async def test_an_engine_that_does_not_run_is_found() -> None:
    async with run(engine("both")) as (address,):
        pass

    diagnosis = await examine(describe(whole=[address]))

    assert "Connection refused" in found(diagnosis)["engine-unreachable"]
    assert diagnosis.facts == ()


@pytest.mark.parametrize("talk", [reset, hang], ids=["resets", "hangs"])
async def test_an_engine_that_gives_no_answer_is_found(
    talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdrouter.tools.doctor.talking._ASK_S", 0.2)
    monkeypatch.setattr("pdrouter.tools.doctor.asking._CONNECT_S", 0.2)
    async with listen(talk) as server:
        diagnosis = await examine(describe(whole=[server.address]))

    assert set(found(diagnosis)) == {"engine-unreachable"}


async def test_an_engine_that_speaks_tls_is_named_so(tmp_path: Path) -> None:
    context = issue(tmp_path, "engine").context()
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    host, port = server.sockets[0].getsockname()
    async with server:
        diagnosis = await examine(describe(whole=[f"{host}:{port}"]))

    assert "it speaks TLS, and no plain HTTP" in found(diagnosis)["engine-unreachable"]


async def test_engines_are_spoken_to_as_the_router_would(tmp_path: Path) -> None:
    pair = issue(tmp_path, "engines.test")
    prefill_engine = EngineConfig(
        role="prefill", models=(MODEL,), tls_certificate=str(pair.cert), tls_key=str(pair.key)
    )
    decode_engine = replace(prefill_engine, role="decode", engine_id="decode")
    plain = EngineConfig(role="decode", models=(MODEL,))
    tls = EngineTls(EngineTlsRules(authorities=pair.ca, name="engines.test"))
    elsewhere = EngineTls(EngineTlsRules(authorities=pair.ca, name="elsewhere.test"))
    async with run(prefill_engine, decode_engine, plain) as (prefill, decode, unencrypted):
        text = describe({"prefill": [prefill], "decode": [decode]})
        assert not found(await examine(text, tls=tls))
        problem = found(await examine(text, tls=elsewhere))["engine-unreachable"]
        assert "its certificate is not trusted: Hostname mismatch" in problem
        problem = found(await examine(describe(whole=[unencrypted]), tls=tls))["engine-unreachable"]
        assert "it does not speak TLS (PDROUTER_ENGINE_TLS)" in problem


@pytest.mark.parametrize(
    ("pages", "code", "words"),
    [
        ({}, "engine-not-openai", "answers GET /v1/models with 404"),
        ({"/v1/models": (500, "")}, "engine-not-openai", "with 500"),
        ({"/v1/models": (302, "")}, "engine-not-openai", "with 302"),
        ({"/v1/models": (401, "")}, "engine-locked", "it asks for a key"),
        ({"/v1/models": (200, "not json")}, "engine-other-model", "it serves no model"),
        ({"/v1/models": (200, '{"data": []}')}, "engine-other-model", "it serves no model"),
        (
            {"/v1/models": (200, '{"data": [{"id": "lama"}]}')},
            "engine-other-model",
            "it serves lama, not llama did you mean lama?",
        ),
        (
            {"/v1/models": (200, '{"data": [{"id": "/models/8b"}]}')},
            "engine-other-model",
            "--served-model-name llama",
        ),
        (
            {"/v1/models": list_models(), "/metrics": (200, "# x\nsglang:num_running_reqs 0\n")},
            "engine-other-software",
            "the file says vllm; by its metrics it is sglang",
        ),
    ],
)
async def test_an_engine_that_is_not_what_the_file_says_is_found(
    pages: dict[str, tuple[int, str]], code: str, words: str
) -> None:
    async with answer(pages) as address:
        diagnosis = await examine(describe(whole=[address]))

    (finding,) = diagnosis.findings
    assert finding.check.code == code
    assert words in found(diagnosis)[code]
    assert finding.defect.field.startswith("models[llama]")


async def test_engines_of_a_roleset_that_differ_are_found() -> None:
    old = {
        "/v1/models": list_models(max_model_len=4096, root="/models/a"),
        "/version": (200, '{"version": "0.11.0"}'),
    }
    new = {
        "/v1/models": list_models(max_model_len=8192, root="/models/b"),
        "/version": (200, '{"version": "0.33.0"}'),
    }
    async with answer(old) as first, answer(new) as second:
        diagnosis = await examine(describe(whole=[first, second]))

    assert set(found(diagnosis)) == {
        "engine-lengths-differ",
        "engine-weights-differ",
        "engine-versions-differ",
    }
    assert f"4096: both {first}; 8192: both {second}" in found(diagnosis)["engine-lengths-differ"]


async def test_engines_of_two_rolesets_may_differ() -> None:
    configs = [
        engine(role, max_model_len=size) for size in (512, 1024) for role in ("prefill", "decode")
    ]
    async with run(*configs) as (one, two, three, four):
        diagnosis = await examine(
            describe({"prefill": [one], "decode": [two]}, {"prefill": [three], "decode": [four]})
        )

    assert diagnosis.findings == ()


async def test_a_prefill_engine_without_a_connector_is_found() -> None:
    async with run(
        engine("prefill", kv_connector="none"), engine("decode", kv_connector="none")
    ) as (
        prefill,
        decode,
    ):
        diagnosis = await examine(describe({"prefill": [prefill], "decode": [decode]}))

    assert set(found(diagnosis)) == {"kv-connector-silent"}
    assert "--kv-transfer-config" in found(diagnosis)["kv-connector-silent"]


async def test_a_decode_engine_that_computes_the_prompt_again_is_not_said_to_fetch_it() -> None:
    async with run(engine("prefill"), engine("decode", kv_connector="none")) as (prefill, decode):
        diagnosis = await examine(describe({"prefill": [prefill], "decode": [decode]}))

    assert diagnosis.findings == ()
    assert f"{decode} answered with a handle of {prefill}, but does not say" in diagnosis.facts[-1]


async def test_addresses_that_seem_to_be_exchanged_are_found() -> None:
    async with run(engine("decode", kv_connector="none"), engine("prefill")) as (prefill, decode):
        diagnosis = await examine(describe({"prefill": [prefill], "decode": [decode]}))

    assert f"but {decode} hands over blocks" in found(diagnosis)["kv-connector-silent"]
    assert "exchanged" in found(diagnosis)["kv-connector-silent"]


async def test_an_engine_that_fails_a_leg_is_found_with_its_words() -> None:
    async with run(engine("prefill")) as (good,), answer({"/v1/models": list_models()}) as odd:
        decode_fails = await examine(describe({"prefill": [good], "decode": [odd]}))
        prefill_fails = await examine(describe({"prefill": [odd], "decode": [good]}))

    assert (
        f"with blocks of {good}, it answers 404: nothing here"
        in found(decode_fails)["decode-leg-failed"]
    )
    assert "it answers 404: nothing here" in found(prefill_fails)["kv-connector-silent"]


async def test_hand_overs_that_are_not_signed_with_the_engines_key_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kv_connector": "trtllm", "auth_key": "the key"}
    async with run(engine("prefill", **options), engine("decode", **options)) as (one, two):
        text = describe({"prefill": [one], "decode": [two]}, engine="trtllm")
        for key in (b"", b"another"):
            findings = found(await examine(text, SplitRules(trtllm_key=key)))
            assert set(findings) == {"handoff-signature"}
            assert "not signed with its key, it answers 401" in findings["handoff-signature"]
            assert "PDROUTER_TRTLLM_AUTH_KEY_FILE" in findings["handoff-signature"]
        (tmp_path / "endpoints.yaml").write_text(text)
        (tmp_path / "key").write_text("the key\n")
        monkeypatch.setenv("PDROUTER_TRTLLM_AUTH_KEY_FILE", str(tmp_path / "key"))
        command = ["doctor", "--endpoints", str(tmp_path / "endpoints.yaml")]
        assert await asyncio.to_thread(main, command) == 0
    assert "the key" not in capsys.readouterr().out


async def test_what_an_engine_is_shows_in_metrics_that_stand_elsewhere() -> None:
    async with run(engine("both", kv_connector="trtllm")) as (address,):
        diagnosis = await examine(describe(whole=[address]))

    assert "trtllm" in found(diagnosis)["engine-other-software"]


async def test_a_roleset_with_one_role_is_found() -> None:
    async with run(engine("prefill"), engine("both")) as (prefill, whole):
        diagnosis = await examine(describe({"prefill": [prefill]}, whole=[whole]))

    assert "but no decode engines" in found(diagnosis)["engine-roleset-half"]


async def test_engines_that_encode_make_no_roleset_whole_and_need_not_be_alike() -> None:
    async with run(engine("prefill"), engine("decode"), engine("encode", max_model_len=100)) as (
        prefill,
        decode,
        encode,
    ):
        half = await examine(describe({"prefill": [prefill], "encode": [encode]}))
        whole = await examine(
            describe({"prefill": [prefill], "decode": [decode], "encode": [encode]})
        )

    assert set(found(half)) == {"engine-roleset-half"}
    assert found(whole) == {}


async def test_the_command_asks_the_engines_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "endpoints.yaml"
    async with run(engine("prefill"), engine("decode")) as (prefill, decode):
        file.write_text(describe({"prefill": [prefill], "decode": [decode]}))
        assert await asyncio.to_thread(main, ["doctor", "--endpoints", str(file)]) == 0
        text = capsys.readouterr().out
        assert f"{decode} decoded what {prefill} had prefilled (llama)" in text
        assert text.endswith("0 errors, 0 warnings\n")

    assert await asyncio.to_thread(main, ["doctor", "--json", "--endpoints", str(file)]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == 2


async def test_engines_may_be_named_by_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "endpoints.yaml"
    async with run(engine("both")) as (address,):
        port = address.rpartition(":")[2]
        file.write_text(describe(whole=[f"localhost:{port}", "nowhere.invalid:8000"]))
        code = await asyncio.to_thread(main, ["doctor", "--json", "--endpoints", str(file)])

    report = json.loads(capsys.readouterr().out)
    assert (code, report["errors"]) == (1, 1)
    (finding,) = report["findings"]
    assert finding["object"]["name"] == "nowhere.invalid:8000"
    assert "the name is not resolved" in finding["problem"]
    assert "serves llama" in report["facts"][0]


@pytest.mark.parametrize("content", [None, "models: [", "models: []\nmodel: x"])
def test_a_file_that_is_no_endpoints_file_gives_exit_code_2(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "endpoints.yaml"
    if content is not None:
        file.write_text(content)

    assert main(["doctor", "--endpoints", str(file)]) == 2
    assert "endpoints.yaml" in capsys.readouterr().err


def test_only_one_thing_is_looked_at_at_a_time() -> None:
    with pytest.raises(SystemExit) as raised:
        main(["doctor", "--endpoints", "a.yaml", "--manifests", "b.yaml"])

    assert raised.value.code == 2


def test_every_check_of_engines_has_a_case() -> None:
    source = Path(__file__).read_text()

    for check in ENDPOINT_CHECKS:
        assert f'"{check.code}"' in source


@asynccontextmanager
async def run_sglang(
    *, claimed_port: int | None = None, prefill_faults: tuple[Fault, ...] = ()
) -> AsyncIterator[tuple[str, SimulatedEngine, SimulatedEngine]]:
    """Run a pair of SGLang's; the file that describes them."""
    prefill = SimulatedEngine(engine("prefill", kv_connector="bootstrap"), *prefill_faults)
    decode = SimulatedEngine(engine("decode", kv_connector="bootstrap"))
    async with prefill, decode:
        port = claimed_port or prefill.bootstrap_port
        roleset = {
            "name": "a",
            "prefill": [{"address": prefill.address, "bootstrap_port": port}],
            "decode": [decode.address],
        }
        model = {"name": MODEL, "engine": "sglang", "rolesets": [roleset]}
        yield yaml.safe_dump({"models": [model]}), prefill, decode


async def test_engines_that_wait_for_each_other_are_asked_at_once() -> None:
    async with run_sglang() as (text, prefill, decode):
        diagnosis = await examine(text)
        assert prefill.count("simulation:contract_violations_total") == 0
        assert prefill.count("simulation:rooms_open") == 0

    assert diagnosis.findings == ()
    assert f"{prefill.address} serves llama (prefill), sglang" in diagnosis.facts[0]
    assert any(f"{decode.address} decoded what" in fact for fact in diagnosis.facts)


async def test_a_prefill_engine_that_fails_is_blamed_and_not_who_waits_for_it() -> None:
    async with run_sglang(prefill_faults=(Fault(status=500),)) as (text, _, decode):
        diagnosis = await examine(text)
        await wait_until(lambda: decode.count("simulation:aborted_requests_total") == 1)

    (code,) = found(diagnosis)
    assert code == "kv-connector-silent"


async def test_a_bootstrap_port_where_nobody_is_fails_the_decode_leg() -> None:
    port = find_free_ports(1)
    async with run_sglang(claimed_port=port) as (text, _, _decode):
        diagnosis = await examine(text)

    assert set(found(diagnosis)) == {"decode-leg-failed"}
    assert "bootstrap port" in found(diagnosis)["decode-leg-failed"]


async def test_an_sglang_that_is_taken_for_a_vllm_is_found() -> None:
    async with run_sglang() as (text, _, _decode):
        diagnosis = await examine(text.replace("engine: sglang", "engine: vllm"))

    assert "write engine: sglang" in found(diagnosis)["engine-other-software"]


async def test_ids_of_ranks_are_asked_for_where_the_wire_needs_them() -> None:
    prefill = SimulatedEngine(engine("prefill", kv_connector="mooncake"))
    decode = SimulatedEngine(engine("decode", kv_connector="mooncake"))
    async with prefill, decode:
        described = {"address": prefill.address, "bootstrap_port": prefill.bootstrap_port}
        roleset = {"name": "a", "prefill": [described], "decode": [decode.address]}
        model = {"name": MODEL, "kv_connector": "mooncake", "rolesets": [roleset]}
        diagnosis = await examine(yaml.safe_dump({"models": [model]}))
        assert prefill.count("simulation:contract_violations_total") == 0

    assert diagnosis.findings == ()


@asynccontextmanager
async def run_transfers(
    wire: KvConnector, *, claimed_port: int | None = None, **options: Any
) -> AsyncIterator[tuple[str, SimulatedEngine, SimulatedEngine]]:
    """Run a pair whose legs meet by the id of a transfer; the file that describes them."""
    prefill = SimulatedEngine(engine("prefill", kv_connector=wire, **options))
    decode = SimulatedEngine(engine("decode", kv_connector=wire, **options))
    async with prefill, decode:
        member: dict[str, Any] = {"address": prefill.address}
        if prefill.config.has_bootstrap_server:
            member["bootstrap_port"] = claimed_port or prefill.bootstrap_port
        roleset = {"name": "a", "prefill": [member], "decode": [decode.address]}
        model = {"name": MODEL, "kv_connector": wire, "rolesets": [roleset]}
        yield yaml.safe_dump({"models": [model]}), prefill, decode


@pytest.mark.parametrize("wire", ["nixl-push", "mooncake", "offloading"])
async def test_engines_that_meet_by_the_id_of_a_transfer_are_tried(wire: KvConnector) -> None:
    async with run_transfers(wire) as (text, prefill, decode):
        diagnosis = await examine(text)
        for each in (prefill, decode):
            assert each.count("simulation:contract_violations_total") == 0
            assert each.count("simulation:kv_handles_outstanding") == 0

    assert diagnosis.findings == ()
    assert any(f"{decode.address} decoded what" in fact for fact in diagnosis.facts)


async def test_a_bootstrap_server_that_nobody_is_at_is_the_prefill_engines() -> None:
    port = find_free_ports(1)
    async with run_transfers("mooncake", claimed_port=port) as (text, _, decode):
        diagnosis = await examine(text)
        assert all(request.method == "GET" for request in decode.requests)

    assert set(found(diagnosis)) == {"kv-connector-silent"}
    assert "/query: " in found(diagnosis)["kv-connector-silent"]


async def test_decode_that_computes_the_prompt_itself_without_a_word_is_found() -> None:
    port = find_free_ports(1)
    running = run_transfers("offloading", claimed_port=port, peer_timeout_s=0.05, kv_lease_s=0.1)
    async with running as (text, _, decode):
        diagnosis = await examine(text)
        assert decode.count("simulation:recomputed_prompts_total") == 1

    assert set(found(diagnosis)) == {"decode-leg-failed"}
    assert "computes the prompt itself" in found(diagnosis)["decode-leg-failed"]
    assert "7777" in found(diagnosis)["decode-leg-failed"]


async def test_a_nixl_that_is_taken_for_a_mooncake_is_told_how_to_become_one() -> None:
    async with run_transfers("nixl-push") as (text, _, _decode):
        diagnosis = await examine(text.replace("nixl-push", "mooncake"))

    assert set(found(diagnosis)) == {"kv-connector-silent"}
    assert "MooncakeConnector" in found(diagnosis)["kv-connector-silent"]
