"""The `pdrouter` command."""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

import pdrouter
from pdrouter.nearest import find_nearest
from pdrouter.settings import SettingInvalid, find_unknown_names

_COMMANDS = {
    "serve": ("run the router", "pdrouter.commands.serve"),
    "up": (
        "run the router and the real Envoy in front of engines of your own",
        "pdrouter.commands.up",
    ),
    "worker": ("run one process of the router; serve does so", "pdrouter.commands.worker"),
    "settings": (
        "show the settings in force, and where each value comes from",
        "pdrouter.commands.settings",
    ),
    "key": ("make a user's API key, and its line for the file of users", "pdrouter.commands.key"),
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
        options = _parse(words)
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
    except KeyboardInterrupt:
        # Ctrl-C before the command was ready for it.
        return 128 + signal.SIGINT


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command that is called; exit with its usage if they are wrong."""
    parser = argparse.ArgumentParser(prog="pdrouter", description=pdrouter.__doc__)
    parser.add_argument("--version", action="version", version=f"pdrouter {pdrouter.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen, wanted = parser, words[0] if words else ""
    for name, (purpose, module_name) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == wanted:
            # Loaded only when called: the router must not carry what other commands need.
            module = import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
            chosen = command
    if wanted.startswith("-") and wanted not in {"-h", "--help", "--version"}:
        parser.error(f"a command must come before {wanted}, such as: pdrouter serve {wanted}")
    if wanted and not wanted.startswith("-") and wanted not in _COMMANDS:
        parser.error(f"there is no command {wanted!r}{_hint(wanted, _COMMANDS)}")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        # The parser of all commands would show their usage, in which the option does not stand.
        chosen.error(_describe_unknown(unknown, chosen))
    return options


def _describe_unknown(words: Sequence[str], command: argparse.ArgumentParser) -> str:
    known = [option for action in command._actions for option in action.option_strings]  # noqa: SLF001
    # What follows an unknown option may be its value.
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    return "; ".join(f"unknown argument {word}{_hint(word, known)}" for word in options or words)


def _hint(word: str, known: Iterable[str]) -> str:
    nearest = find_nearest(word, known)
    return f": did you mean {nearest}?" if nearest else ""
