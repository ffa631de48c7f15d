"""`pdrouter serve`: the router."""

import argparse
import os
import sys

import uvloop

from pdrouter.app import serve
from pdrouter.cluster.source import SourceUnusable
from pdrouter.extproc.tls import CertificatesInvalid
from pdrouter.extproc.tokenizing import TokenizerUnusable
from pdrouter.settings import Settings, declarations
from pdrouter.telemetry.logs import log_to_stdout


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
    try:
        with log_to_stdout(settings.log_level):
            uvloop.run(serve(settings))
    except (SourceUnusable, CertificatesInvalid, TokenizerUnusable, OSError) as error:
        print(f"pdrouter: {error}", file=sys.stderr)
        return 1
    return 0
