"""`pdrouter settings`: the tables that `docs/configuration.md` holds."""

import argparse

from pdrouter.settings import describe_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""
    del parser


def run(options: argparse.Namespace) -> int:
    """Print the settings as Markdown tables."""
    del options
    print(describe_settings(), end="")
    return 0
