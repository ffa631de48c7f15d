"""`pdrouter up`: the router and the real Envoy in front of engines that are there already."""

import argparse
import os
import sys
from collections.abc import Mapping

import uvloop

from pdrouter.cluster.pods import is_ip
from pdrouter.commands.starting import report_names
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.settings.choices import EngineEncryption
from pdrouter.telemetry.logs import log_to_stdout
from pdrouter.tools.envoy_config import Address
from pdrouter.tools.envoy_config.cors import check_origins

_LOOPBACK = "127.0.0.1"
_DEFAULTS = {
    "ROUTING_ALGORITHM": "pd",
    "PDROUTER_GRPC_BIND": f"{_LOOPBACK}:0",
    "PDROUTER_HTTP_BIND": f"{_LOOPBACK}:8080",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; all else of the router is set by its variables."""
    parser.add_argument(
        "--endpoints",
        metavar="FILE",
        help="the engines (docs/endpoints-file.md); read again when it changes",
    )
    parser.add_argument(
        "--listen",
        type=_parse_listen,
        default=f"{_LOOPBACK}:10080",
        metavar="IP:PORT",
        help="where Envoy accepts clients; port 0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--http-bind",
        metavar="IP:PORT",
        help=f"the router's metrics and state (default: {_DEFAULTS['PDROUTER_HTTP_BIND']})",
    )
    parser.add_argument(
        "--cors-origin",
        type=_parse_origin,
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin call, such as https://chat.example.com or *; "
        "repeatable (default: none)",
    )


def _parse_origin(text: str) -> str:
    try:
        check_origins((text,), credentials=False)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _parse_listen(text: str) -> Address:
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not is_ip(address.host):
        raise argparse.ArgumentTypeError(f"{text!r} needs an IP address")
    return address


def run(options: argparse.Namespace) -> int:
    """Run both until Ctrl-C.

    Raises:
        SettingInvalid: a setting has a value that is not allowed, or makes no sense here.
    """
    settings = _load(os.environ, options)
    # Read by gRPC when it is loaded: it would write a line about Envoy's being started.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from pdrouter.commands.front import UNUSABLE, run_both  # noqa: PLC0415

    try:
        with log_to_stdout(settings.log_level):
            report_names(os.environ)
            uvloop.run(run_both(settings, options.listen, tuple(options.cors_origin)))
    except UNUSABLE as error:
        print(f"pdrouter up: {error}", file=sys.stderr)
        return 1
    return 0


def _load(environment: Mapping[str, str], options: argparse.Namespace) -> Settings:
    given = {name: text for name, text in environment.items() if text.strip()}
    settings, refusals = Settings.read({**_DEFAULTS, **given}, vars(options))
    problems = [*map(str, refusals)]
    if settings.endpoints is None:
        problems.append("there are no engines: give --endpoints FILE (docs/endpoints-file.md)")
    if settings.workers > 1:
        problems.append("PDROUTER_WORKERS: `pdrouter up` is one process; `pdrouter serve` has more")
    if settings.tls_certificate is not None:
        problems.append("PDROUTER_TLS_CERTIFICATE: between the two of `pdrouter up` is plain text")
    if settings.engine_tls is EngineEncryption.ON and settings.engine_server_name is None:
        problems.append("PDROUTER_ENGINE_TLS: Envoy needs PDROUTER_ENGINE_SERVER_NAME with it")
    if problems:
        raise SettingInvalid(*problems)
    return settings
