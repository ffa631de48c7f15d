"""A whole installation on this machine: simulated engines, the router and the real Envoy."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pdrouter.app import Application
from pdrouter.settings import Settings
from pdrouter.settings.choices import Routing
from pdrouter.tools.envoy_config import (
    Address,
    EnvoyConfig,
    ResponseBodyMode,
    build_bootstrap,
    to_yaml,
)
from pdrouter.tools.envoy_config.pod_tls import choose_pod_tls
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

_ANY_PORT = Address("127.0.0.1", 0)


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What the installation consists of.

    Attributes:
        model: name of the served model.
        prefill: prefill engines to start.
        decode: decode engines to start.
        encode: encode engines to start.
        environment: settings of the router, by variable.
        routing: how Envoy reaches the chosen pod.
        response_body: whether response bodies pass through the router.
        allow_mode_override: whether the router may turn response bodies off.
        router_log: whether Envoy tells the router of requests that have ended.
        token_accounting: whether Envoy counts tokens and tells the router.
        trace_collector: where Envoy sends its spans; None for nowhere.
        cors_origins: web pages that may call.
        listen: where Envoy accepts clients.
        admin: where the router's HTTP port listens.
    """

    model: str = "demo"
    prefill: Sequence[EngineConfig] = (
        EngineConfig(role="prefill"),
        EngineConfig(role="prefill"),
    )
    decode: Sequence[EngineConfig] = (EngineConfig(role="decode"), EngineConfig(role="decode"))
    encode: Sequence[EngineConfig] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    routing: Routing = Routing.ORIGINAL_DST
    response_body: ResponseBodyMode = ResponseBodyMode.NONE
    allow_mode_override: bool = True
    router_log: bool = True
    token_accounting: bool = False
    trace_collector: Address | None = None
    cors_origins: tuple[str, ...] = ()
    listen: Address = _ANY_PORT
    admin: Address = _ANY_PORT


@dataclass(frozen=True, slots=True)
class LocalStack:
    """A running installation.

    Attributes:
        prefill: the prefill engines.
        decode: the decode engines.
        encode: the encode engines.
        router: the router, in this process.
        envoy: the Envoy in front of it.
        endpoints_file: the file that the router reads its pods from.
        model: name of the served model.
    """

    prefill: Sequence[SimulatedEngine]
    decode: Sequence[SimulatedEngine]
    encode: Sequence[SimulatedEngine]
    router: Application
    envoy: EnvoyProcess
    endpoints_file: Path
    model: str

    @property
    def url(self) -> str:
        """Where clients send their requests, without a path."""
        return f"http://{self.envoy.listener}"

    @property
    def admin_url(self) -> str:
        """The router's HTTP port, without a path."""
        return f"http://{self.router.admin.address}"


@asynccontextmanager
async def run_stack(options: StackOptions) -> AsyncIterator[LocalStack]:
    """Run an installation while the context lasts.

    Raises:
        EnvoyError: there is no Envoy, or it does not start.
    """
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdrouter-")))
        prefill, decode, encode = [
            [
                await stack.enter_async_context(SimulatedEngine(_serve(config, options.model)))
                for config in configs
            ]
            for configs in (options.prefill, options.decode, options.encode)
        ]
        endpoints_file = directory / "endpoints.yaml"
        write_endpoints(endpoints_file, options.model, prefill, decode, encode)
        settings = Settings.load(
            {
                "ROUTING_ALGORITHM": "pd",
                "PDROUTER_ENDPOINTS": str(endpoints_file),
                "PDROUTER_GRPC_BIND": str(_ANY_PORT),
                "PDROUTER_HTTP_BIND": str(options.admin),
                "PDROUTER_POD_ROUTING": options.routing,
                **options.environment,
            },
            {},
        )
        # Its engines are started right here, and record what requests bring them.
        router = await stack.enter_async_context(Application(settings, asks_engines=False))
        bootstrap = await asyncio.to_thread(_build_envoy, options, router, settings, decode)
        envoy = await stack.enter_async_context(EnvoyProcess.run(bootstrap))
        yield LocalStack(prefill, decode, encode, router, envoy, endpoints_file, options.model)


def write_endpoints(
    file: Path,
    model: str,
    prefill: Sequence[SimulatedEngine],
    decode: Sequence[SimulatedEngine],
    encode: Sequence[SimulatedEngine] = (),
    **members: Any,  # noqa: ANN401 - members of the file's model, such as kv_connector
) -> None:
    """Write an endpoints file with one roleset of these engines."""
    model_members: dict[str, Any] = {"name": model}
    (software,) = {engine.config.engine for engine in (*prefill, *decode)}
    if software != "vllm":
        model_members["engine"] = software
    roleset: dict[str, Any] = {
        "name": "default",
        "prefill": [describe_engine(engine) for engine in prefill],
        "decode": [describe_engine(engine) for engine in decode],
    }
    if encode:
        roleset["encode"] = [describe_engine(engine) for engine in encode]
    content = {"models": [{**model_members, "rolesets": [roleset], **members}]}
    # In one step, so that the router never reads half a file.
    temporary = file.with_suffix(".new")
    temporary.write_text(yaml.safe_dump(content))
    temporary.replace(file)


def describe_engine(engine: SimulatedEngine) -> str | dict[str, str | int]:
    """Return how an endpoints file names an engine."""
    if not engine.config.has_bootstrap_server:
        return engine.address
    return {"address": engine.address, "bootstrap_port": engine.bootstrap_port}


def _serve(config: EngineConfig, model: str) -> EngineConfig:
    return replace(config, models=(model,))


def _build_envoy(
    options: StackOptions,
    router: Application,
    settings: Settings,
    decode: Sequence[SimulatedEngine],
) -> str:
    override = options.routing is Routing.OVERRIDE_HOST
    config = EnvoyConfig(
        routers=(Address("127.0.0.1", router.server.port),),
        listen=options.listen,
        admin=_ANY_PORT,
        routing=options.routing,
        decode=tuple(Address.parse(engine.address) for engine in decode) if override else (),
        response_body=options.response_body,
        allow_mode_override=options.allow_mode_override,
        router_log=options.router_log,
        token_accounting=options.token_accounting,
        trace_collector=options.trace_collector,
        cors_origins=options.cors_origins,
        max_message_bytes=settings.max_message_bytes,
        prefill_timeout_s=settings.prefill_timeout_s,
        pod_tls=choose_pod_tls(settings),
    )
    return to_yaml(build_bootstrap(config))
