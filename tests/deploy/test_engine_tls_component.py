"""The component `engine-tls`: the router and Envoy speak TLS to engines that serve HTTPS."""

from dataclasses import replace
from pathlib import Path

import httpx
from authority import Authority
from envoy_gateway import translate
from manifests import compose, find

from pdrouter.settings import Settings
from pdrouter.settings.choices import EngineEncryption
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig

MODEL = "llama31-8b"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


async def test_both_legs_are_encrypted(tmp_path: Path) -> None:
    objects = compose(["envoy-gateway", "endpoint-override", "engine-tls"], namespace="inference")
    (container,) = find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    set_here = {name: variables[name] for name in variables if name.startswith("PDROUTER_ENGINE_")}
    settings = Settings.load(set_here, {})
    assert settings.engine_tls is EngineEncryption.ON
    assert str(settings.engine_ca).startswith("/etc/pdrouter/engines/")

    authority = Authority.create(tmp_path, "authority")
    pair = authority.sign(tmp_path, str(settings.engine_server_name))
    ca = authority.pair.certificate
    metadata = {"name": "pdrouter-engine-ca", "namespace": "inference"}
    trusted = {"kind": "ConfigMap", "metadata": metadata, "data": {"ca.crt": ca.read_text()}}
    engine = EngineConfig(tls_certificate=str(pair.certificate), tls_key=str(pair.key))
    options = StackOptions(
        model=MODEL,
        prefill=[replace(engine, role="prefill", engine_id="prefill")],
        decode=[replace(engine, role="decode", engine_id="decode")],
        environment={**set_here, "PDROUTER_ENGINE_CA": str(ca)},
    )
    async with run_stack(options) as stack:
        endpoints = {
            "pdrouter": [f"127.0.0.1:{stack.router.server.port}"],
            "pdrouter-decode": [engine.address for engine in stack.decode],
        }
        bootstrap = translate([*objects, trusted], endpoints)
        async with EnvoyProcess.run(bootstrap) as envoy, httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"http://{envoy.listener}/v1/chat/completions", json=CHAT)

    assert (answer.status_code, answer.headers["x-pd-decision"]) == (200, "disaggregated")
