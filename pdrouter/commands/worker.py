"""`pdrouter worker`: one of the processes that `pdrouter serve --workers` runs."""

import argparse
import os
import sys
from pathlib import Path

import uvloop

from pdrouter.cluster.source import SourceUnusable
from pdrouter.commands.running import WorkerPlace, serve
from pdrouter.commands.starting import report_names, report_strategy
from pdrouter.pem_files import CertificatesInvalid
from pdrouter.serving.tokenizers import TokenizerUnusable
from pdrouter.settings import Settings
from pdrouter.telemetry.logs import log_to_stdout
from pdrouter.users.roster import RosterInvalid

_UNUSABLE = (SourceUnusable, CertificatesInvalid, TokenizerUnusable, RosterInvalid, OSError)


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
    parser.add_argument(
        "--journals",
        type=int,
        required=True,
        metavar="FD",
        help="descriptor of the memory in which the workers tell each other what they know",
    )


def run(options: argparse.Namespace) -> int:
    """Run the worker until it is told to stop, or its standard input ends.

    Raises:
        SettingInvalid: a setting has a value that is not allowed.
    """
    settings = Settings.load(os.environ, {}).choose_worker(options.number)
    return run_router(settings, WorkerPlace(options.number, options.admin_socket, options.journals))


def run_router(settings: Settings, place: WorkerPlace | None = None) -> int:
    """Run a router in this process.

    Args:
        settings: what the operator decided.
        place: of a worker, its place among the others; None for the only one.

    Returns:
        0 if it was told to stop, 1 if it cannot serve.
    """
    constants = {} if place is None else {"worker": place.number}
    try:
        with log_to_stdout(settings.log_level, shared=place is not None, **constants):
            if place is None:
                report_names(os.environ)
                report_strategy(settings)
            uvloop.run(serve(settings, place))
    except _UNUSABLE as error:
        speaker = "pdrouter" if place is None else f"pdrouter: worker {place.number}"
        print(f"{speaker}: {error}", file=sys.stderr)
        return 1
    return 0
