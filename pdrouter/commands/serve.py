"""`pdrouter serve`: the router."""

import argparse
import os
import sys

import uvloop

from pdrouter.cluster.pods import format_address
from pdrouter.commands.starting import describe_serving, greet, report_names, report_strategy
from pdrouter.settings import Settings, declarations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting that has one."""
    for name, declaration in declarations().items():
        if declaration.option:
            text = f"{declaration.doc} [{declaration.variable}]".replace("%", "%%")
            if declaration.switch:
                parser.add_argument(
                    declaration.option, dest=name, action="store_const", const="true", help=text
                )
            else:
                parser.add_argument(declaration.option, dest=name, metavar="VALUE", help=text)


def run(options: argparse.Namespace) -> int:
    """Run the router until it is told to stop.

    Raises:
        SettingInvalid: a setting has a value that is not allowed.
    """
    settings = Settings.load(os.environ, vars(options))
    if settings.workers > 1:
        return _run_workers(settings, options)
    # Only what runs is loaded: the supervisor of workers needs a third of the router's memory.
    from pdrouter.commands.worker import run_router  # noqa: PLC0415

    return run_router(settings)


def _run_workers(settings: Settings, options: argparse.Namespace) -> int:
    from pdrouter.telemetry.logs import log_to_stdout  # noqa: PLC0415
    from pdrouter.workers.supervisor import WorkersFailed, supervise  # noqa: PLC0415

    given = {
        declaration.variable: text
        for name, declaration in declarations().items()
        if (text := vars(options).get(name)) is not None
    }

    def on_serving(http: str) -> bool:
        addresses = [
            format_address(*settings.choose_worker(number).grpc_bind)
            for number in range(settings.workers)
        ]
        return greet(describe_serving(addresses, http, f"with {settings.workers} workers"))

    try:
        with log_to_stdout(settings.log_level, shared=True):
            report_names(os.environ)
            report_strategy(settings)
            uvloop.run(supervise(settings, {**os.environ, **given}, on_serving))
    except (WorkersFailed, OSError) as error:
        print(f"pdrouter: {error}", file=sys.stderr)
        return 1
    return 0
