"""`pdrouter settings`: what is in force here, and where each value comes from."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace

import msgspec

from pdrouter.commands import serve
from pdrouter.process_limits import choose_body_memory, find_memory_limit
from pdrouter.settings import (
    SettingInForce,
    Settings,
    describe_settings,
    find_unknown_names,
    find_unused_names,
    list_settings,
)

_UNSET = "-"
_WIDEST = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of `pdrouter serve` count as they would there."""
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--json", action="store_true", help="print JSON, with what each means")
    shapes.add_argument(
        "--describe",
        action="store_true",
        help="print what each means instead, and what is allowed, as tables in Markdown",
    )
    serve.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the settings.

    Returns:
        2 if `pdrouter serve` would not start with these settings, else 0.
    """
    if options.describe:
        print(describe_settings(), end="")
        return 0
    given = vars(options)
    settings, refusals = Settings.read(os.environ, given)
    found = _find_unset(settings)
    in_force = [
        replace(each, value=found[each.variable][0], source=found[each.variable][1])
        if each.variable in found
        else each
        for each in list_settings(settings, os.environ, given)
    ]
    print(_render_json(in_force) if options.json else _render_columns(in_force))
    for problem in (*refusals, *find_unknown_names(os.environ)):
        print(f"pdrouter: {problem}", file=sys.stderr)
    unused = find_unused_names(os.environ)
    if unused:
        print(f"pdrouter: of aibrix, without effect here: {', '.join(unused)}", file=sys.stderr)
    return 2 if refusals else 0


def _find_unset(settings: Settings) -> Mapping[str, tuple[str, str]]:
    """Return what the router finds in place of settings that are unset, and where, by variable."""
    found: dict[str, tuple[str, str]] = {}
    if settings.max_held_bytes is None:
        share = choose_body_memory(find_memory_limit(), settings.workers)
        found["PDROUTER_MAX_HELD_BYTES"] = (str(share * settings.workers), "memory-limit")
    if settings.kubernetes:
        # Loaded when needed, as the router does.
        from pdrouter.cluster.kubernetes.api import (  # noqa: PLC0415
            KubeConfigInvalid,
            find_kubeconfig,
            find_own_namespace,
        )

        kubeconfig = find_kubeconfig(settings.kubeconfig)
        if settings.kubeconfig is None and kubeconfig is not None:
            found["KUBECONFIG"] = (str(kubeconfig), "home-directory")
        if not (settings.namespaces or settings.own_namespace):
            # Where it cannot be found, the start says so.
            with suppress(KubeConfigInvalid):
                found["PDROUTER_NAMESPACES"] = (find_own_namespace(kubeconfig), "file")
    return found


def _render_json(settings: Sequence[SettingInForce]) -> str:
    document = msgspec.json.encode({"settings": [asdict(each) for each in settings]})
    return msgspec.json.format(document).decode()


def _render_columns(settings: Sequence[SettingInForce]) -> str:
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [(each.variable, each.value or _UNSET, each.source) for each in settings]
    names = max(len(name) for name, _, _ in rows)
    values = min(_WIDEST, max(len(value) for _, value, _ in rows))
    return "\n".join(f"{name:{names}}  {value:{values}}  {source}" for name, value, source in rows)
