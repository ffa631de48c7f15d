"""The `pdrouter` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import pdrouter
from pdrouter.settings import SettingInvalid, find_unknown_names

_COMMANDS = {
    "serve": ("run the router", "pdrouter.commands.serve"),
    "worker": ("run one process of the router; serve does so", "pdrouter.commands.worker"),
    "settings": ("print all settings with their meaning", "pdrouter.commands.settings"),
    "envoy-config": ("print an Envoy bootstrap for the router", "pdrouter.commands.envoy_config"),
    "doctor": (
        "say what is wrong with an installation, and what to change",
        "pdrouter.commands.doctor",
    ),
    "engine": ("run a simulated engine", "pdrouter.commands.engine"),
    "demo": ("run engines, Envoy and the router on this machine", "pdrouter.commands.demo"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if it went well, 1 if it failed, 2 if it was called in a wrong way.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _create_parser(words[0] if words else "").parse_args(words)
        return int(options.run(options))
    except SettingInvalid as error:
        # A name that nobody reads may be the cause, or be what is met next.
        for problem in (*error.problems, *find_unknown_names(os.environ)):
            print(f"pdrouter: {problem}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pdrouter"):
            raise
        print(f"pdrouter: {error.name} is missing: install pdrouter[demo]", file=sys.stderr)
        return 1


def _create_parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pdrouter", description=pdrouter.__doc__)
    parser.add_argument("--version", action="version", version=f"pdrouter {pdrouter.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (purpose, module_name) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == chosen:
            # Loaded only when called: the router must not carry what other commands need.
            module = import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
