"""`pdrouter worker`: one of the processes that `pdrouter serve --workers` runs."""

import argparse
import os
import sys
from pathlib import Path

import uvloop

from pdrouter.cluster.source import SourceUnusable
from pdrouter.commands.running import serve
from pdrouter.commands.starting import report_names, report_strategy
from pdrouter.extproc.tls import CertificatesInvalid
from pdrouter.serving.tokenizers import TokenizerUnusable
from pdrouter.settings import Settings
from pdrouter.telemetry.logs import log_to_stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; the settings come from the environment."""
    parser.add_argument("--number", type=int, required=True, metavar="N", help="which one, from 0")
    parser.add_argument(
        "--admin-socket",
        type=Path,
        required=True,
        metavar="PATH",
        help="Unix socket on which the supervisor asks for metrics and state",
    )


def run(options: argparse.Namespace) -> int:
    """Run the worker until it is told to stop, or its standard input ends.

    Raises:
        SettingInvalid: a setting has a value that is not allowed.
    """
    settings = Settings.load(os.environ, {}).choose_worker(options.number)
    return run_router(settings, options.admin_socket, options.number)


def run_router(
    settings: Settings, admin_socket: Path | None = None, number: int | None = None
) -> int:
    """Run a router in this process.

    Args:
        settings: what the operator decided.
        admin_socket: of a worker, the Unix socket for its admin pages.
        number: of a worker, which one it is.

    Returns:
        0 if it was told to stop, 1 if it cannot serve.
    """
    constants = {} if number is None else {"worker": number}
    try:
        with log_to_stdout(settings.log_level, **constants):
            if number is None:
                report_names(os.environ)
                report_strategy(settings)
            uvloop.run(serve(settings, admin_socket, number or 0))
    except (SourceUnusable, CertificatesInvalid, TokenizerUnusable, OSError) as error:
        speaker = "pdrouter" if number is None else f"pdrouter: worker {number}"
        print(f"{speaker}: {error}", file=sys.stderr)
        return 1
    return 0
