"""The router with the real Envoy in front of it, until somebody ends both."""

import asyncio
import json
import os
import shlex
import sys
from contextlib import AsyncExitStack

from pdrouter.app import Application
from pdrouter.cluster.source import SourceUnusable
from pdrouter.cluster.view import ClusterView
from pdrouter.commands.running import StopSignals, drain, prepare_process, settle_process
from pdrouter.commands.starting import describe_models, make_url
from pdrouter.pem_files import CertificatesInvalid
from pdrouter.ports import check_port
from pdrouter.serving.tokenizers import TokenizerUnusable
from pdrouter.settings import Settings
from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_config.pod_tls import choose_pod_tls
from pdrouter.tools.envoy_process import EnvoyError, EnvoyProcess
from pdrouter.users.roster import RosterInvalid

UNUSABLE = (
    SourceUnusable,
    CertificatesInvalid,
    TokenizerUnusable,
    RosterInvalid,
    EnvoyError,
    OSError,
)
"""What makes it impossible to run both; each says why."""

_LOOPBACK = "127.0.0.1"
_LOG_TAIL_CHARACTERS = 2000


async def run_both(settings: Settings, listen: Address, cors_origins: tuple[str, ...]) -> None:
    """Run the router and Envoy until a signal, or until Envoy ends.

    Args:
        settings: what the operator decided.
        listen: where Envoy accepts clients.
        cors_origins: web pages that may call.

    Raises:
        UNUSABLE: what makes it impossible.
    """
    signals = prepare_process()
    async with AsyncExitStack() as stack:
        check_port("--listen", listen.host, listen.port)
        app = await stack.enter_async_context(Application(settings))
        bootstrap = await asyncio.to_thread(
            _write_bootstrap, settings, app.server.port, listen, cors_origins
        )
        envoy = await stack.enter_async_context(
            EnvoyProcess.run(bootstrap, concurrency=os.cpu_count() or 1)
        )
        signals.child = envoy.pid
        settle_process()
        print(_describe(envoy.listener, app), file=sys.stderr, flush=True)
        await _wait_for_end(signals, envoy)
        await drain(app, interrupted=signals.interrupted)


def _write_bootstrap(
    settings: Settings, grpc_port: int, listen: Address, cors_origins: tuple[str, ...]
) -> str:
    host = settings.grpc_bind[0]
    config = EnvoyConfig(
        routers=(Address(_LOOPBACK if host == "0.0.0.0" else host, grpc_port),),
        listen=listen,
        admin=Address(_LOOPBACK, 0),
        router_log=settings.observe_tokens.access_log,
        token_accounting=settings.observe_tokens.counts,
        max_message_bytes=settings.max_message_bytes,
        prefill_timeout_s=settings.prefill_timeout_s,
        cors_origins=cors_origins,
        pod_tls=choose_pod_tls(settings),
    )
    return to_yaml(build_bootstrap(config))


async def _wait_for_end(signals: StopSignals, envoy: EnvoyProcess) -> None:
    """Wait for a signal.

    Raises:
        EnvoyError: Envoy has ended by itself.
    """
    told = asyncio.create_task(signals.wait())
    ended = asyncio.create_task(envoy.process.wait())
    try:
        await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            log = envoy.log_file.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
            raise EnvoyError(f"Envoy ended with exit code {ended.result()}: {log}")
    finally:
        told.cancel()
        ended.cancel()


def _describe(listener: str, app: Application) -> str:
    url = make_url(listener)
    return (
        f"Send requests to {url}/v1: {describe_models(app.cache.view)}.\n"
        f"See {make_url(app.admin.address)}/readyz, /debug/state and /metrics. Ctrl-C ends both.\n"
        f"\n  {write_curl(url, app.cache.view)}\n"
    )


def write_curl(url: str, view: ClusterView) -> str:
    """Return a command that sends a request.

    Args:
        url: where Envoy accepts clients.
        view: the pods; the first model is asked for.
    """
    model = next(iter(view.names), "MODEL")
    body = {
        "model": model,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    return (
        f"curl {url}/v1/chat/completions -H 'content-type: application/json' -d"
        f" {shlex.quote(json.dumps(body))}"
    )
