"""`pdrouter engine`: one simulated engine."""

import argparse
import asyncio

from pdrouter.tools.simulation import command
from pdrouter.tools.simulation.command import add_arguments

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    return asyncio.run(command.run(options))
